"""A network of its own for a command: nothing outside answers, and every name that is asked for is noted.

    unshare --user --map-root-user --net --mount python names_looked_up.py FILE COMMAND...

runs the command where the only name server is this program, which knows no name. It writes the names that
were asked for to FILE, one a line, and ends with the command's own status.
"""

import fcntl
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

NO_SUCH_NAME = 0x8183
"""Flags of an answer: recursion was wanted and is there, there is no such name."""
UP_AND_RUNNING, SET_FLAGS = 0x41, 0x8914
"""Linux's: of an interface, and the request that sets them."""


def main() -> int:
    names_file, command = Path(sys.argv[1]), sys.argv[2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        fcntl.ioctl(server, SET_FLAGS, struct.pack("16sH14x", b"lo", UP_AND_RUNNING))
        resolver = names_file.with_suffix(".conf")
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
        server.bind(("127.0.0.1", 53))
        names: list[str] = []
        threading.Thread(target=answer, args=(server, names), daemon=True).start()
        status = subprocess.run(command, check=False).returncode
    names_file.write_text("".join(f"{name}\n" for name in names))
    return status


def answer(server: socket.socket, names: list[str]) -> None:
    """Note the name of every question, and tell that there is none such."""
    while True:
        question, asker = server.recvfrom(4096)
        names.append(name_in(question))
        head = struct.pack("!2s5H", question[:2], NO_SUCH_NAME, 1, 0, 0, 0)
        server.sendto(head + question[12 : 12 + len(names[-1]) + 6], asker)


def name_in(question: bytes) -> str:
    """The first name that a DNS message asks for."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels)


if __name__ == "__main__":
    sys.exit(main())
