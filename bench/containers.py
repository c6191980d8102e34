"""Measures containers: from `docker run` to the first response, and the size of an image."""

import json
import os
import subprocess
import tarfile
import time

from process import ROOT, Missing, Request, await_response, free_port, on_path, say

PORTS = {"ours": 5000, "flask": 5000, "nginx": 80}
IMAGES = {"ours": "wasi-essentials:1.0", "flask": "flask-tutorial", "nginx": "nginx"}


def present(images, missing):
    """Those of the images that Docker has; the others are added to `missing`."""
    found = {}
    for name, image in images.items():
        try:
            if subprocess.run([on_path("docker"), "image", "inspect", image], check=False, capture_output=True).returncode != 0:
                raise Missing(f"no image `{image}` here; `--image {name}=REFERENCE` names another")
            found[name] = image
        except Missing as reason:
            missing[f"container: {name}"] = str(reason)
    return found


def start(name, image):
    """Milliseconds from `docker run` to the first response of a new container."""
    port, container = free_port(), f"bench-{os.getpid()}"
    publish = ["--publish", f"127.0.0.1:{port}:{PORTS[name]}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        ["docker", "run", "--rm", "--name", container, *publish, image],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        # With a pause, so that the engine has the CPU to itself.
        return await_response(port, Request(), started, process, pause=0.002) * 1000
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=False, capture_output=True)
        process.wait()


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
