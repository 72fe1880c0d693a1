"""A gRPC server: server.py NAME IP:PORT [DIRECTORY of cert.pem, key.pem, roots.pem]

Answers every call with its name, and over TLS with the caller's SPIFFE ID. Ends when standard input does."""

import concurrent.futures
import pathlib
import sys

import grpc

name, address = sys.argv[1:3]


def answer(_, context):
    caller = context.auth_context().get("peer_spiffe_id", [])
    return b" ".join([name.encode(), *caller])


class Everything(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), [Everything()])
if len(sys.argv) > 3:
    read = lambda file: (pathlib.Path(sys.argv[3]) / file).read_bytes()
    identity = [(read("key.pem"), read("cert.pem"))]
    credentials = grpc.ssl_server_credentials(identity, read("roots.pem"), require_client_auth=True)
    server.add_secure_port(address, credentials)
else:
    server.add_insecure_port(address)
server.start()
print("{}", flush=True)
sys.stdin.read()
server.stop(0)
