"""A local S3 server with configurable latency, from which TensorFlow reads s3:// URLs."""
import contextlib
import http.server
import os
import random
import re
import threading
import time
import urllib.parse

FOLDER = 'data'
URL = f's3://benchmark/{FOLDER}'
_LIST = ('<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
         '{}</ListBucketResult>')
_ENTRY = '<Contents><Key>{}</Key><Size>{}</Size></Contents>'


class ObjectStore(http.server.ThreadingHTTPServer):
    """Serves the files of a directory as the objects below `URL`.

    Args:
      folder: str, directory of the files.
      repeats: int, number of copies of the file in an object. Copies make shards as long as those
        of ImageNet without disk space.

    Attributes:
      latency_secs: delay of each response, in seconds.
      slow_share, slow_secs: share of slow responses in [0, 1], and their additional seconds.
      num_requests, num_bytes: requests and bytes served so far.
    """
    daemon_threads = True

    def __init__(self, folder, repeats=1):
        super().__init__(('127.0.0.1', 0), _Handler)
        self._contents = {}
        self._repeats = repeats
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), 'rb') as file:
                self._contents[f'{FOLDER}/{name}'] = file.read()
        self.latency_secs = self.slow_share = self.slow_secs = 0
        self.num_requests = self.num_bytes = 0
        self._random, self._lock = random.Random(0), threading.Lock()

    def size(self, key):
        """Returns the size of an object in bytes, or None if it does not exist."""
        return len(self._contents[key]) * self._repeats if key in self._contents else None

    def keys(self, prefix):
        return [key for key in sorted(self._contents) if key.startswith(prefix)]

    def part(self, key, start, stop):
        """Returns the bytes start to stop - 1 of an object."""
        content = self._contents[key]
        first = start % len(content)
        copies = -(-(first + stop - start) // len(content))
        return memoryview(content * copies if copies > 1 else content)[first:first + stop - start]

    def wait(self, num_bytes):
        """Delays a response like a network, and counts it.

        Args:
          num_bytes: int, size of the response.
        """
        with self._lock:
            self.num_requests += 1
            self.num_bytes += num_bytes
            is_slow = self._random.random() < self.slow_share
        time.sleep(self.latency_secs + is_slow * self.slow_secs)


@contextlib.contextmanager
def serving(folder, repeats=1):
    """Context manager that runs an `ObjectStore`; processes started in the context read from it."""
    with ObjectStore(folder, repeats) as store:
        thread = threading.Thread(target=store.serve_forever, daemon=True)
        thread.start()
        os.environ.update(
            S3_ENDPOINT=f'127.0.0.1:{store.server_port}', S3_USE_HTTPS='0', S3_VERIFY_SSL='0',
            AWS_ACCESS_KEY_ID='none', AWS_SECRET_ACCESS_KEY='none', AWS_REGION='us-east-1',
            AWS_LOG_LEVEL='0')
        try:
            yield store
        finally:
            store.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        key = urllib.parse.unquote(url.path).strip('/').partition('/')[2]
        store, size = self.server, self.server.size(key)
        if not key:
            listed = ''.join(_ENTRY.format(key, store.size(key))
                             for key in store.keys(query.get('prefix', '')))
            self._answer(200, _LIST.format(listed).encode())
        elif size is None:
            self._answer(404)
        else:
            match = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
            start, stop = (int(match[1]), min(size, int(match[2]) + 1)) if match else (0, size)
            if start >= size:
                self._answer(416)
            else:
                self._answer(206 if match else 200, store.part(key, start, stop), {
                    'Content-Range': f'bytes {start}-{stop - 1}/{size}'} if match else {})

    def do_HEAD(self):
        key = urllib.parse.unquote(self.path).strip('/').partition('/')[2]
        size = self.server.size(key)
        self.server.wait(0)
        self.send_response(404 if key and size is None else 200)
        self.send_header('Content-Length', str(size or 0))
        self.send_header('Last-Modified', 'Thu, 01 Jan 2026 00:00:00 GMT')
        self.end_headers()

    def _answer(self, status, content=b'', headers=()):
        self.server.wait(len(content))
        self.send_response(status)
        self.send_header('Content-Length', str(len(content)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *args):
        """Disables the log of requests."""
