#!/usr/bin/python
"""Pulls an official image for one architecture, and refuses one that is not what the catalogue says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_image_pull
short_description: Pull an image by tag or digest, check what came, and name it
options:
  image:
    description: Repository and tag, as in C(nginx:1.28).
    type: str
    required: true
  registry:
    description: What stands before the repository, as in C(registry.lab:5000/library); empty for the engine's own.
    type: str
    default: ""
  digest:
    description: The digest that the image must have, that of the architecture's manifest or of the list for all
      architectures. The engine checks every byte against it. Empty where the catalogue has none.
    type: str
    default: ""
  arch:
    description: Architecture as C(uname -m) says it.
    type: str
    required: true
  name:
    description: Name to give to the image. One that the engine has under this name is not pulled again.
    type: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
digest:
  description: The digest under which the image came; what to write into the catalogue to pin it.
  returned: when it was pulled
  type: str
"""

import os
import re
import time
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import get
from ansible.module_utils.testbed_oci import ARCHITECTURES

ATTEMPTS = 3
UNKNOWN = re.compile(r"manifest unknown|not found", re.IGNORECASE)


def record(reference):
    """Return the engine's record of an image; None where it has none."""
    return get(f"/images/{quote(reference, safe='')}/json")


def pull(module, reference):
    """Pull an image; return what the engine said where it failed, else an empty text. A registry may stumble once."""
    arch = module.params["arch"]
    foreign = [] if arch == os.uname().machine else [f"--platform=linux/{ARCHITECTURES.get(arch, arch)}"]
    for attempt in range(ATTEMPTS):
        time.sleep(5 * attempt)
        code, out, err = module.run_command(["docker", "pull", "--quiet", *foreign, reference])
        said = "" if code == 0 else f"{out}{err}".strip()
        if not said or UNKNOWN.search(said):
            break
    return said


def digest_of(reference, repository):
    """Return the digest under which an image that is there was pulled."""
    digests = (record(reference) or {}).get("RepoDigests") or []
    return next((digest.partition("@")[2] for digest in digests if digest.partition("@")[0] == repository), "")


def main():
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "registry": {"type": "str", "default": ""},
            "digest": {"type": "str", "default": ""},
            "arch": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    image, digest, arch, name = (module.params[key] for key in ("image", "digest", "arch", "name"))
    repository, colon, _tag = image.rpartition(":")
    if not colon or "/" in _tag or "@" in image:
        module.fail_json(msg=f"images_upstream: {image!r} has no tag: write repository:tag; a digest goes into digests")
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        module.fail_json(
            msg=f"images_upstream: {digest!r} is no digest of {image}: write sha256: and 64 digits from 0 to f"
        )
    if record(name):
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True)

    prefix = module.params["registry"].rstrip("/")
    repository = f"{prefix}/{repository}" if prefix else repository
    tagged = f"{prefix}/{image}" if prefix else image
    wanted = f"{repository}@{digest}" if digest else tagged
    if said := pull(module, wanted):
        if not (digest and UNKNOWN.search(said)):
            module.fail_json(
                msg=f"{wanted} could not be pulled: {said}. Can this host reach the registry? images_registry names a "
                "mirror; testbed_images_source: debian needs no registry."
            )
        came = "" if pull(module, tagged) else digest_of(tagged, repository)
        there = f"under that tag it has {came}" if came else "it has nothing under that tag either"
        module.fail_json(
            msg=f"{tagged} for {arch} was to be {digest}, which the registry does not have: {there}. If the image was "
            "renewed, check the new one and write its digest into images_upstream; if not, do not trust that registry.",
            expected=digest,
            came=came,
        )
    came = record(wanted)["Architecture"]
    if came != ARCHITECTURES.get(arch, arch):
        module.fail_json(
            msg=f"{wanted} was to be for {arch} (Docker's {ARCHITECTURES.get(arch, arch)}), and it is for {came}: write"
            " the digest of this architecture, or that of the list for all of them, into images_upstream."
        )
    module.run_command(["docker", "tag", wanted, name], check_rc=True)
    module.exit_json(changed=True, digest=digest_of(wanted, repository))


if __name__ == "__main__":
    main()
