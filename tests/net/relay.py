"""A long way to a server: `python relay.py PORT HOST DELAY_MS` passes on what comes, each piece that much later."""

import socket
import sys
import threading
import time


def pass_on(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
    while data := source.recv(1 << 20):
        time.sleep(delay_s)
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def main(port: int, host: str, delay_s: float) -> None:
    with socket.create_server(("", port), backlog=64) as listener:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection((host, 80))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pass_on, args=(*pair, delay_s / 2), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) / 1000)
