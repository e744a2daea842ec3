"""Networks of the agent's own: whether this machine lets a process have one, and how the proxy comes to listen there.

A program that is started in such a network opens a listener in it and hands it to the proxy, before any code of the
model's runs (`lambdas.agent.launch`). The listener is the only thing that leads out of that network, and it leads to
the proxy; the proxy's process stays where it is, and reaches what the machine reaches.
"""

import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from lambdas.agent import launch

PORT = 61080
"""Where the proxy listens in a network of the agent's own. It is known before that network is there, because the
agent's environment holds it. Linux by itself gives out ports up to 60999, and servers are seldom told one above."""

HAND_OVER_SECONDS = 5
"""How long a program may take to hand over what it announced; it takes microseconds."""

CREDENTIALS = struct.Struct("=iII")
"""unix(7), SO_PEERCRED: a process, its user and its group."""


def available() -> bool:
    """Whether a program that is started here can have a network of its own. A child tries it, in some 2 ms; not one of
    a process that is sealed, whose own files in /proc are root's."""
    if sys.platform != "linux":
        return False
    child = os.fork()
    if child == 0:
        try:
            launch.leave_the_network()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Handoff:
    """A Unix socket, named `launch.HANDOFF`, in a directory of ours, where one listener can be handed over, once.

    Its name is gone, and nobody listens there, before who hands it over hears that it was taken: so the program that
    is then executed finds nothing, whatever kinds of sockets it has. Who is another user is not heard before that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        with suppress(FileNotFoundError):  # of a program that was never started
            os.unlink(launch.HANDOFF, dir_fd=self._folder)
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(f"/proc/self/fd/{self._folder}/{launch.HANDOFF}")  # an address has room for 107 bytes
        self._door.listen(1)

    def taken(self) -> socket.socket | None:
        """The listener, as soon as it is there; None if this is closed before. To be called once."""
        try:
            while True:
                try:
                    line, _ = self._door.accept()
                except OSError:  # it was closed
                    return None
                with line:
                    line.settimeout(HAND_OVER_SECONDS)
                    if listener := _handed(line):
                        os.unlink(launch.HANDOFF, dir_fd=self._folder)
                        self.close()
                        line.sendall(launch.TAKEN)
                        return listener
        finally:
            os.close(self._folder)

    def close(self) -> None:
        """Take nothing any more."""
        with suppress(OSError):  # it is closed
            self._door.shutdown(socket.SHUT_RDWR)  # wakes who waits
        self._door.close()


def _handed(line: socket.socket) -> socket.socket | None:
    """What is handed over by this user: one descriptor, of a socket."""
    _, user, _ = CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    if user != os.geteuid():
        return None
    try:
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
    except OSError:
        return None
    return socket.socket(fileno=descriptors[0]) if descriptors else None
