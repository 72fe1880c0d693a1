"""Reads flows with another gRPC implementation (C-core) and nothing of ours but the numbers in docs/hubble.md.

usage: observe.py SOCKET DOCUMENT VERDICT COUNT [NAME DIR]: prints a flow a line, by the names of the document. With NAME, SOCKET is
host:port, the server must prove that it is NAME, and DIR has ca.crt, tls.crt and tls.key.
"""
import json
import sys

import grpc


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    """One field: an integer, or bytes of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data):
    """Number and value of each field of a message."""
    at = 0

    def take():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(data):
        key = take()
        kind = key & 7
        if kind == 0:
            yield key >> 3, take()
        elif kind == 1:
            yield key >> 3, data[at : at + 8]
            at += 8
        elif kind == 2:
            length = take()
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def one(data, *path):
    """The value at a path of field numbers, or None."""
    for number in path:
        found = [value for known, value in fields(data) if known == number]
        if not found:
            return None
        data = found[-1]
    return data


def text(data, *path):
    value = one(data, *path)
    return None if value is None else value.decode()


def documented(path):
    part = open(path, encoding="utf-8").read().split("\n## Fields of a flow\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in part.splitlines() if line.startswith("| `")]
    return {row[1].strip().strip("`"): int(row[2]) for row in rows}


def main():
    socket, document, verdict, count = sys.argv[1:5]
    number = documented(document)
    if len(sys.argv) > 5:
        name, folder = sys.argv[5:]
        read = lambda file: open(f"{folder}/{file}", "rb").read()
        shown = grpc.ssl_channel_credentials(read("ca.crt"), read("tls.key"), read("tls.crt"))
        channel = grpc.secure_channel(socket, shown, options=[("grpc.ssl_target_name_override", name)])
    else:
        # Without it C-core makes an authority of the socket's path, which is none.
        channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
    service = "/observer.Observer/"
    status = channel.unary_unary(service + "ServerStatus")(b"", timeout=20)
    print(json.dumps({"kept": one(status, 1), "capacity": one(status, 2), "version": text(status, 8)}))
    request = field(1, int(count)) + field(6, field(5, varint(int(verdict))))
    for response in channel.unary_stream(service + "GetFlows")(request, timeout=20):
        flow = one(response, 1)
        print(
            json.dumps(
                {
                    "seconds": one(flow, number["time"], 1),
                    "verdict": one(flow, number["verdict"]),
                    "reason": one(flow, number["drop_reason_desc"]),
                    "source": text(flow, number["IP"], 1),
                    "destination": text(flow, number["IP"], 2),
                    "port": one(flow, number["l4"], 1, 2),
                    "syn": one(flow, number["l4"], 1, 3, 2),
                    "identity": one(flow, number["source"], 2),
                    "namespace": text(flow, number["source"], 3),
                    "pod": text(flow, number["source"], 5),
                    "node": text(flow, number["node_name"]),
                    "direction": one(flow, number["traffic_direction"]),
                    "policy": text(flow, number["egress_denied_by"], 1),
                    "summary": text(flow, number["Summary"]),
                }
            )
        )


main()
