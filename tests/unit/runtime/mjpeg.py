"""A camera on the network: Motion JPEG over HTTP, as many IP cameras serve it."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import numpy as np
from glocal.runtime.images import encode_jpeg


class MjpegCamera:
    """Serves frames on 127.0.0.1 until it is closed; the first connections end after some frames.

    Args:
        image: (H, W, 3) uint8 RGB, every frame.
        lasts: Frames after which the first, second, ... connection is cut; later ones never end.
        pause_s: Between two frames.
        hangs_after: Frames after which every connection stays open and silent.
    """

    def __init__(
        self, image: np.ndarray, lasts: tuple[int, ...] = (), pause_s: float = 0.02, hangs_after: int = 10**9
    ) -> None:
        jpeg = encode_jpeg(image)
        part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
        self.connections = 0
        self.closed = threading.Event()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = camera.connections
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                left = lasts[number] if number < len(lasts) else hangs_after
                while left and not camera.closed.is_set():
                    try:
                        self.wfile.write(part)
                    except OSError:
                        return
                    left -= 1
                    time.sleep(pause_s)
                if number >= len(lasts):
                    camera.closed.wait()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/video"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> MjpegCamera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
