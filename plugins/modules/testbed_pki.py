#!/usr/bin/python
"""Makes a testbed's certificate authority, server certificate, secret and SuperNode keys; leaves what is valid."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_pki
short_description: Make a testbed's certificates and keys
description:
  - Runs on the controller. Every private file is made with mode 0600 in a folder of mode 0700 and never returned.
  - What is there stays. The server's certificate is made again when its names differ, and both certificates when they
    end within I(renew_days), each with the key that it had - so that hosts with the old authority and hosts with the
    new one understand each other while they are renewed one after another.
  - A file that can't be read is an error, never a reason to replace a key that hosts rely on.
  - A client that the file C(revoked) names gets no key, and is an error.
options:
  path:
    description: Folder for C(ca.key), C(ca.crt), C(server.key), C(server.crt), C(superexec.secret),
      C(nodes/CLIENT[.pub]), C(exporters/HOST.key), C(exporters/HOST.crt), C(prometheus.key), C(prometheus.crt),
      C(grafana.password) and C(prometheus.passwords).
    type: path
    required: true
  testbed:
    description: Name of the testbed, part of the authority's name.
    type: str
    required: true
  server_names:
    description: Every name and address by which the server is dialled.
    type: list
    elements: str
    required: true
  clients:
    description: Names of the SuperNodes that get a key.
    type: list
    elements: str
    required: true
  exporters:
    description: Names and addresses by which Prometheus dials each host's exporters, by host. With any, Prometheus gets
      a certificate, by which exporters know it.
    type: dict
    default: {}
  ca_days:
    description: Days that the authority's certificate is valid.
    type: int
    default: 3650
  server_days:
    description: Days that the other certificates are valid; they never outlast the authority's.
    type: int
    default: 825
  renew_days:
    description: A certificate that ends within this many days is made again.
    type: int
    default: 30
author: fltestbed authors
"""

RETURN = r"""
made:
  description: Files made, or that would be in check mode, relative to I(path).
  returned: always
  type: list
  elements: str
valid_until:
  description: When the server's certificate ends, ISO 8601.
  returned: when there is one
  type: str
"""

import datetime
import ipaddress
import os
import secrets
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def write(path, content, mode):
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(content)
    partial.rename(path)


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path):
    return serialization.load_pem_private_key(path.read_bytes(), password=None)


def load_certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def certificate(subject, public_key, issuer, signer, ends):
    """Return a builder with what both kinds of certificate share."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - datetime.timedelta(hours=1))
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def key_usage(**uses):
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names})


def general_name(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def make_ca(testbed, key, days):
    builder = certificate(f"fltestbed {testbed} CA", key.public_key(), None, key, now() + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_leaf(subject, use, names, key, ca_key, ca, days):
    """Return a certificate for one use, of a server or a client, that holds the names."""
    ends = min(now() + datetime.timedelta(days=days), ca.not_valid_after_utc)
    builder = certificate(subject, key.public_key(), ca.subject, ca_key, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def lasts(path, days):
    """Return whether there is a certificate that does not end within some days."""
    return path.exists() and load_certificate(path).not_valid_after_utc - now() > datetime.timedelta(days=days)


def serves(path, names):
    """Return whether a certificate has exactly these names."""
    held = load_certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(held) == {general_name(name) for name in names}


def objection(folder, params):
    """Return what speaks against the arguments, an empty string if nothing does."""
    if params["renew_days"] >= min(params["ca_days"], params["server_days"]):
        return (
            f"certificates_renew_days is {params['renew_days']}, and a certificate would be due for renewal as soon as "
            "it is made. Set it below certificates_ca_days and certificates_server_days"
        )
    file = folder / "revoked"
    refused = sorted(set(params["clients"]) & set(file.read_text().split() if file.exists() else ()))
    if refused:
        return (
            f"the inventory has {', '.join(refused)}, and that key was revoked. Take it out of the inventory; or let "
            f"it in with a new key: fltestbed revoke --undo {refused[0]}"
        )
    return ""


def make_all(folder, params, dry):
    """Make what is missing, and what ends soon; return the names of the files made."""
    made = []
    renew_days = params["renew_days"]

    def ensure(name, content, mode=0o600, missing=None, public=None):
        path = folder / name
        if public and not path.exists() and (folder / public).exists():
            raise ValueError(f"{name} is gone, and {public}, which hosts rely on, is still there")
        if (not path.exists()) if missing is None else missing:
            made.append(name)
            if not dry:
                write(path, content(), mode)

    def new_key():
        return pem(ec.generate_private_key(ec.SECP384R1()))

    ensure("ca.key", new_key, public="ca.crt")
    ensure(
        "ca.crt",
        lambda: make_ca(params["testbed"], load_key(folder / "ca.key"), params["ca_days"]),
        0o644,
        missing=not lasts(folder / "ca.crt", renew_days),
    )

    def ensure_leaf(path, subject, use, names):
        key, crt = f"{path}.key", f"{path}.crt"
        ensure(key, new_key, public=crt)
        ensure(
            crt,
            lambda: make_leaf(
                subject,
                use,
                names,
                load_key(folder / key),
                load_key(folder / "ca.key"),
                load_certificate(folder / "ca.crt"),
                params["server_days"],
            ),
            0o644,
            missing=not (lasts(folder / crt, renew_days) and serves(folder / crt, names)),
        )

    ensure_leaf("server", "fltestbed server", ExtendedKeyUsageOID.SERVER_AUTH, params["server_names"])
    exporters = params["exporters"]
    for host, names in exporters.items():
        ensure_leaf(f"exporters/{host}", f"fltestbed exporters of {host}", ExtendedKeyUsageOID.SERVER_AUTH, names)
    if exporters:
        ensure_leaf("prometheus", "fltestbed prometheus", ExtendedKeyUsageOID.CLIENT_AUTH, ["prometheus"])
        ensure("grafana.password", lambda: secrets.token_urlsafe(18).encode())
        ensure("prometheus.passwords", lambda: f"fltestbed:{{PLAIN}}{secrets.token_urlsafe(18)}\n".encode())
    ensure("superexec.secret", lambda: secrets.token_urlsafe(48).encode())
    for client in params["clients"]:
        ensure(
            f"nodes/{client}",
            lambda: ec.generate_private_key(ec.SECP384R1()).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
            public=f"nodes/{client}.pub",
        )
        ensure(
            f"nodes/{client}.pub",
            lambda private=folder / "nodes" / client: (
                serialization.load_ssh_private_key(private.read_bytes(), None)
                .public_key()
                .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            ),
            0o644,
        )
    return made


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "testbed": {"type": "str", "required": True},
            "server_names": {"type": "list", "elements": "str", "required": True},
            "clients": {"type": "list", "elements": "str", "required": True},
            "exporters": {"type": "dict", "default": {}},
            "ca_days": {"type": "int", "default": 3650},
            "server_days": {"type": "int", "default": 825},
            "renew_days": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    if reason := objection(folder, module.params):
        module.fail_json(msg=reason)
    try:
        made = make_all(folder, module.params, module.check_mode)
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"the testbed's keys and certificates in {folder} can't be used: {error}. Restore the folder from a "
            "backup; or remove it, and deploy again with new keys on every host."
        )
    result = {"changed": bool(made), "made": made}
    if (folder / "server.crt").exists():
        result["valid_until"] = load_certificate(folder / "server.crt").not_valid_after_utc.isoformat()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
