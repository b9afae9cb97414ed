"""The process that workers are forked from: `python -m cvfs.mount.template REQUEST SOCKET`."""

import gc
import socket
import sys


def main() -> None:
    gc.disable()  # imports make no garbage: looking for it costs them a tenth of their time
    from cvfs.fuse.worker import run_template
    from cvfs.mount.heap import return_memory
    from cvfs.mount.request import decode_request
    from cvfs.mount.supervised import work

    return_memory()
    request = decode_request(sys.argv[1])

    def work_on(connection: socket.socket) -> None:
        gc.enable()
        work(request, connection)

    run_template(int(sys.argv[2]), work_on)


if __name__ == "__main__":
    main()
