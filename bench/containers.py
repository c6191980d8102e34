"""Measures containers: from `docker run` to the first response, and the size of an image."""

import json
import os
import subprocess
import tarfile
import time

from process import ROOT, Missing, Request, await_response, free_port, on_path, say

PORTS = {"wasi-essentials": 5000, "flask": 5000, "nginx": 80}
IMAGES = {"wasi-essentials": "wasi-essentials:1.0", "flask": "flask-tutorial", "nginx": "nginx"}


def present(images, missing):
    """Those of the images that Docker has; the others are added to `missing`."""
    found = {}
    for name, image in images.items():
        try:
            inspect = [on_path("docker"), "image", "inspect", image]
            if subprocess.run(inspect, check=False, capture_output=True).returncode != 0:
                raise Missing(f"no image `{image}` here; `--image {name}=REFERENCE` names another")
            found[name] = image
        except Missing as reason:
            missing[f"container: {name}"] = str(reason)
    return found


def start(name, image):
    """Milliseconds from `docker run` to the first response of a new container."""
    port, container = free_port(), f"bench-{os.getpid()}"
    publish = ["--publish", f"127.0.0.1:{port}:{PORTS[name]}"]
    command = ["docker", "run", "--detach", "--name", container, *publish, image]
    started = time.perf_counter()
    try:
        # Not asked before it runs: an address that does not respond yet is tried again after a second (ARP).
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"`docker run` fails: {(done.stderr.strip().splitlines() or ['no output'])[0]}")
        return await_response(port, Request(), started) * 1000
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=False, capture_output=True)


def compressed_size():
    """Bytes of the production image as a registry has it."""
    on_path("docker")
    archive = ROOT / "target" / "bench" / "image.tar"
    settings = {"PLATFORMS": "linux", "OUTPUT": f"type=oci,dest={archive}"}
    say("building: ./bake image")
    if subprocess.run([ROOT / "bake", "image"], check=False, env=os.environ | settings).returncode != 0:
        raise Missing("./bake cannot build it here")
    with tarfile.open(archive) as files:
        document = json.load(files.extractfile("index.json"))
        while "manifests" in document:
            digest = document["manifests"][0]["digest"]
            document = json.load(files.extractfile(f"blobs/{digest.replace(':', '/')}"))
    return sum(layer["size"] for layer in document["layers"])
