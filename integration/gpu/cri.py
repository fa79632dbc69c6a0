"""The few CRI calls that the runs need (runtime.v1, api.proto of cri-api 0.36), over grpcio.

Messages are written as pairs of field number and value; a GPU host has no protoc.
"""

import grpc


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def message(*fields):
    """Encodes (number, value) pairs: text, bytes of a message, numbers, and dicts as maps."""
    out = b""
    for number, value in fields:
        if isinstance(value, dict):
            out += b"".join(message((number, message((1, k), (2, v)))) for k, v in value.items())
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def first_text(data):
    """Field 1, a text, which is all that the answers here hold."""
    assert data[0] == 1 << 3 | 2 and data[1] < 128
    return data[2 : 2 + data[1]].decode()


class Cri:
    """A client of one socket."""

    def __init__(self, socket):
        self.channel = grpc.insecure_channel(f"unix://{socket}")

    def call(self, method, request, timeout=600):
        path = f"/runtime.v1.RuntimeService/{method}"
        return self.channel.unary_unary(path)(request, timeout=timeout)

    def pod(self, name, handler):
        """A sandbox on the host's network. Returns its id and its configuration."""
        options = message((1, 2), (2, 1))
        config = message(
            (1, message((1, name), (2, f"uid-{name}"), (3, "gpu"))),
            (3, f"/var/log/pods/{name}"),
            (8, message((1, f"/kubepods/{name}"), (2, message((1, options))))),
        )
        self.last = first_text(self.call("RunPodSandbox", message((1, config), (2, handler)))), config
        return self.last

    def container(self, pod, name, image, argv, environment, mounts, devices, annotations, memory=0):
        """Creates and starts a container. Returns its id."""
        sandbox, sandbox_config = pod
        options = message((1, 2), (2, 1))
        resources = message((4, memory)) if memory else b""
        config = message(
            (1, message((1, name))),
            (2, message((1, image))),
            *[(3, word) for word in argv],
            *[(6, message((1, key), (2, value))) for key, value in environment.items()],
            *[(7, message((1, inside), (2, host), (3, 1))) for host, inside in mounts],
            *[(8, message((1, path), (2, path), (3, "rwm"))) for path in devices],
            (10, annotations),
            (11, f"{name}.log"),
            (15, message((1, resources), (2, message((3, options))))),
        )
        request = message((1, sandbox), (2, config), (3, sandbox_config))
        container = first_text(self.call("CreateContainer", request))
        self.call("StartContainer", message((1, container)))
        return container

    def checkpoint(self, container, location):
        self.call("CheckpointContainer", message((1, container), (2, location)))

    def remove_container(self, container):
        self.call("StopContainer", message((1, container)))
        self.call("RemoveContainer", message((1, container)))

    def remove_pod(self, pod):
        self.call("StopPodSandbox", message((1, pod[0])))
        self.call("RemovePodSandbox", message((1, pod[0])))
