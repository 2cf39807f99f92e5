"""The input that a `Config` describes."""
import imagenet_input
import model_builder_factory


def make(config, is_training, rank=0, world_size=1):
    """The `ImageNetInput` of one process, for training or for evaluation."""
    data = config.data
    builder = model_builder_factory.get_model_builder(config.model.model_name)
    return imagenet_input.ImageNetInput(
        data_dir=data.data_dir,
        is_training=is_training,
        image_size=config.optimization.input_image_size,
        batch_size=data.batch_size if is_training else data.eval_batch_size,
        num_classes=config.model.num_label_classes,
        label_base=data.label_base,
        resize_method=builder.resize_method,
        min_crop_area=data.min_crop_area,
        random_flip=data.random_flip,
        augment=imagenet_input.augmentation(
            data.augment_name, data.randaug_num_layers, data.randaug_magnitude),
        mixup_alpha=data.mixup_alpha,
        holdout_shards=data.holdout_shards,
        num_images=data.num_eval_images,
        use_cache=data.use_cache,
        num_parallel_calls=data.num_parallel_calls,
        transpose_input=data.transpose_input,
        seed=data.random_seed,
        allow_empty_shards=data.max_bad_records > 0,
        rank=rank,
        world_size=world_size)
