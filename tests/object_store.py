"""A real object store on this machine (moto's server, a process of its own), and a proxy that fails on demand."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager

import boto3
import botocore.exceptions

ANSWER = "HTTP/1.1 {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# By mode of the proxy: what it says instead of the store.
ANSWERS = {"hang up": None, "busy": "503 Slow Down", "forbid": "403 Forbidden"}
METHODS = (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests"}


def environment(url):
    """What points a process to the store, as a user would set it; nothing else of this machine's AWS settings."""
    nowhere = dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), os.devnull)
    return (
        {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        | CREDENTIALS
        | nowhere
    )


def free_port():
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Store:
    """A running server: its address, and a client that is not ours."""

    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key"), CREDENTIALS.values(), strict=True))
        self.client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def keys(self, bucket, prefix=""):
        """Names of all objects that start with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def uploads(self, bucket):
        """Names of objects whose upload in parts was begun and neither completed nor aborted."""
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    @contextmanager
    def demanding_credentials(self):
        """Refuse whoever it does not know (and it knows nobody), as a real store does."""
        self._demand_after("0")
        yield
        self._demand_after("inf")

    def _demand_after(self, requests):
        text = {"Content-Type": "text/plain"}
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/moto-api/reset-auth", requests.encode(), text)
        ).close()


@contextmanager
def running_store(*buckets):
    """Start a server with these buckets; end it afterwards."""
    store = Store(free_port())
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store.port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        for bucket in buckets:
            while True:
                try:
                    store.client.create_bucket(Bucket=bucket)
                    break
                except botocore.exceptions.EndpointConnectionError:
                    assert server.poll() is None, "the server did not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        yield store
    finally:
        server.terminate()
        server.wait()


class Proxy:
    """A TCP proxy before a store: passes all on, hangs up, answers 503 or 403, or holds all back.

    It counts requests by method, and holds each back for ``delay`` seconds.
    """

    def __init__(self, port, delay=0.0):
        self.mode, self.sent_down, self.connections = "pass", 0, 0
        self.delay, self.requests = delay, Counter()
        self._target, self._next, self._left, self._open = port, "pass", float("inf"), []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def turn(self, mode, *, after=0):
        """Be ``pass``, ``hang up``, ``busy``, ``forbid`` or ``hold``, now or when so many more bytes have gone up."""
        self._next, self._left = mode, after if after else float("inf")
        if not after:
            self._become(mode)

    def _become(self, mode):
        self.mode, self._left = mode, float("inf")
        if mode in ANSWERS:
            for connection in self._open:
                _hang_up(connection)

    def _accept(self):
        while True:
            client = self._listener.accept()[0]
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        if self.mode in ANSWERS:
            if answer := ANSWERS[self.mode]:
                client.recv(1 << 16)
                client.sendall(ANSWER.format(answer).encode())
            _hang_up(client)
            return
        server = socket.create_connection(("127.0.0.1", self._target))
        self._open += [client, server]
        down = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
        down.start()
        self._pass(client, server, True)
        down.join()
        client.close()
        server.close()

    def _count(self, data):
        """A client sends one request after the other on a connection, each at the start of what it sends."""
        method = data.split(b" ", 1)[0]
        if method in METHODS:
            self.requests[method.decode()] += 1
            time.sleep(self.delay)

    def _pass(self, source, sink, up):
        try:
            while data := source.recv(1 << 16):
                if up:
                    self._count(data)
                    self._left -= len(data)
                    if self._left <= 0:
                        self._become(self._next)
                    while self.mode == "hold":
                        time.sleep(0.02)
                else:
                    self.sent_down += len(data)
                sink.sendall(data)
            # The other direction may still have something to say.
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _hang_up(source)
            _hang_up(sink)


def _hang_up(connection):
    try:
        # With a reset, as from a process that was killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
