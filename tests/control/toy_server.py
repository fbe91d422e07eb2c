"""Serves the toy policy from a process of its own: `python toy_server.py` prints the port."""

import asyncio

from toy_policy import ToyPolicy

from vla.serving.server import Server


async def serve():
    async with Server(ToyPolicy(), port=0).listening() as port:
        print(port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
