"""Test double of ModelArts' moxing, as far as copying folders goes.

FAKE_OBS_ROOT is the folder that stands for obs://; FAKE_MOXING_RECORD gets a JSON line per copy.
"""
from moxing import file  # noqa: F401
