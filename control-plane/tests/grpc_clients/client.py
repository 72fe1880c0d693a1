"""gRPC's own xDS client (C-core). Takes lines of JSON, and answers each with one.

{"open": TARGET, "xds_credentials": BOOL}         a channel
{"call": TARGET, "count": N, "path": PATH}                    calls: {"answers": {TEXT: N}, "errors": [TEXT]}"""

import collections
import json
import sys

import grpc

channels = {}


def open_channel(command):
    target = command["open"]
    if command["xds_credentials"]:
        channels[target] = grpc.secure_channel(target, grpc.xds_channel_credentials())
    else:
        channels[target] = grpc.insecure_channel(target)
    return {}


def call(command):
    method = channels[command["call"]].unary_unary(command["path"])
    answers, errors = collections.Counter(), []
    for _ in range(command["count"]):
        try:
            answers[method(b"", timeout=20).decode()] += 1
        except grpc.RpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
    return {"answers": answers, "errors": errors}


for line in sys.stdin:
    command = json.loads(line)
    result = open_channel(command) if "open" in command else call(command)
    print(json.dumps(result), flush=True)
