"""Runs a program as on a machine that offers no sandbox: `python -m tests.support.no_sandbox PROGRAM ARGUMENTS…`.

A filter of system calls refuses Landlock, and mount(2), which every container program needs.
"""

import ctypes
import errno
import os
import struct
import sys

from lambdas.agent import launch

MOUNT = {"x86_64": 165, "aarch64": 40}

if __name__ == "__main__":
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        steps = launch._step(launch.LOAD, launch.CALL)
        for number in (launch.CREATE_RULESET, MOUNT[os.uname().machine]):
            steps += launch._step(launch.EQUAL, number, 0, 1) + launch._refuse(errno.ENOSYS)
        steps += launch._step(launch.RETURN, launch.ALLOW)
        program = ctypes.create_string_buffer(steps)
        filtering = struct.pack("@HP", len(steps) // 8, ctypes.addressof(program))
        libc.prctl(launch.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        assert libc.prctl(launch.PR_SET_SECCOMP, launch.SECCOMP_MODE_FILTER, filtering, 0, 0) == 0
    os.execv(sys.argv[1], sys.argv[1:])
