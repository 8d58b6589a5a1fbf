"""A link that is slow and narrow: a proxy that delays each piece and lets few bytes through.

`python slow_link.py LISTEN PORT TARGET PORT SECONDS BYTES_A_SECOND`
"""

import asyncio
import sys


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float, rate: float
) -> None:
    """Pass on what comes, `seconds` late and no faster than `rate` bytes a second."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
    clock = asyncio.get_running_loop()

    async def take() -> None:
        while piece := await reader.read(16_384):
            await pieces.put((clock.time() + seconds, piece))
        await pieces.put((0.0, b""))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, piece = await pieces.get()
            if not piece:
                break
            await asyncio.sleep(max(0.0, due - clock.time()))
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(len(piece) / rate)
    except ConnectionError:
        pass
    finally:
        taking.cancel()
        writer.close()


async def serve(listen: str, port: int, target: str, target_port: int, *pace: float) -> None:
    """Pass on every connection, both ways."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(target, target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, there_writer, *pace), pump(there_reader, writer, *pace))

    server = await asyncio.start_server(connected, listen, port)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    listen, port, target, target_port, seconds, rate = sys.argv[1:]
    asyncio.run(serve(listen, int(port), target, int(target_port), float(seconds), float(rate)))
