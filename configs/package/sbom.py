"""sbom.py ROOT: prints a CycloneDX bill of materials of what is compiled into the programs.

The crates are those that `cargo metadata` reaches from the default members of the workspace at
ROOT by ordinary dependencies on Linux; build scripts, macros' own crates and tests are not shipped.
"""

import json
import os
import re
import subprocess
import sys
import time

root = sys.argv[1]
# Cargo names itself to what it runs; sudo may hide it from the PATH.
cargo = os.environ.get("CARGO", "cargo")
command = "metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu"
metadata = json.loads(subprocess.check_output([cargo, *command.split()], cwd=root))
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
with open(os.path.join(root, "Cargo.lock")) as lock:
    locked = re.findall(r'name = "(.*)"\nversion = "(.*)"\nsource = .*\nchecksum = "(.*)"', lock.read())
checksums = {(name, version): checksum for name, version, checksum in locked}


def needs(identity):
    """What is linked into a crate."""
    return sorted(
        dependency["pkg"]
        for dependency in nodes[identity]["deps"]
        if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        and not any("proc-macro" in t["kind"] for t in packages[dependency["pkg"]]["targets"])
    )


def reference(identity):
    package = packages[identity]
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(identity):
    package = packages[identity]
    own = package["source"] is None
    found = {
        "type": "application" if any("bin" in t["kind"] for t in package["targets"]) and own else "library",
        "bom-ref": reference(identity),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(identity),
    }
    if package["license"]:
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((package["name"], package["version"])):
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


reached, waiting = set(), list(metadata["workspace_default_members"])
while waiting:
    identity = waiting.pop()
    if identity not in reached:
        reached.add(identity)
        waiting.extend(needs(identity))
order = sorted(reached, key=reference)
version = packages[metadata["workspace_default_members"][0]]["version"]
when = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
            "component": {"type": "application", "bom-ref": "kybernate", "name": "kybernate", "version": version},
        },
        "components": [component(identity) for identity in order],
        "dependencies": [
            {"ref": "kybernate", "dependsOn": [reference(i) for i in sorted(metadata["workspace_default_members"], key=reference)]}
        ]
        + [{"ref": reference(i), "dependsOn": [reference(d) for d in needs(i)]} for i in order],
    },
    sys.stdout,
    indent=1,
)
print()
