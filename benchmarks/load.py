"""A minimal HTTP client, so that on two cores the server is measured and not the client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


class Refused(Exception):
    """The server's status was not a success."""


@dataclass
class Connection:
    """One kept-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection(host, port))

    async def post(self, path: str, body: bytes, token: str) -> bytes:
        """The response body. Raises `Refused` with status and body if the status is not 2xx."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        headers = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = headers.partition(b"content-length:")[2].partition(b"\r\n")[0]
        content = await self.reader.readexactly(int(length or 0))
        if headers[9:10] != b"2":
            raise Refused(headers[9:12].decode() + " " + content.decode())
        return content

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()
