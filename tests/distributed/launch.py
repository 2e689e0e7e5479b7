"""Runs a program in several processes as torchrun does, but imports torch once: launch.py PROCESSES SCRIPT ARGUMENTS...

A SCRIPT is a file or `-m module`.
"""

import os
import runpy
import socket
import sys

import torch._dynamo
import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp  # noqa: F401

import redi.training.trainer  # noqa: F401

if __name__ == "__main__":
    size, sys.argv = sys.argv[1], sys.argv[2:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(int(size)):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if sys.argv[0] == "-m":
                del sys.argv[0]
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit()
        children.append(child)
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
