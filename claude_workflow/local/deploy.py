"""Deploys the synthesized template to the engine: the same resources, roles and definition as in AWS.

What differs here, and nothing else does:

- The API is not deployed; `local.gateway` reads it out of the same template.
- Functions, RunClaude's image too, are this project's own files, run by AWS's runtime client (`local.worker`).
- Nothing warms RunClaude up: no event says that the stack is there.
- The bucket has a fixed name, so that a restart finds its sessions, and no policy: that one demands TLS.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_workflow.local.api import Template
from claude_workflow.local.engine import KEPT, Engine
from claude_workflow.local.guard import BUCKET

ROOT = Path(__file__).resolve().parent.parent.parent
"""Where `lambdas`, `stacks` and `statemachine` lie: a clone, or the folder that a wheel was installed into."""
STACK = "ClaudeAgentWorkflow"
CODE_BUCKET = "claude-workflow-code"
CODE_KEY = "worker.zip"
TEMPLATE_KEY = "template.json"
DEPLOYED = (
    "AWS::IAM::Policy",
    "AWS::IAM::Role",
    "AWS::Lambda::Alias",
    "AWS::Lambda::Function",
    "AWS::Lambda::Version",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SecretsManager::Secret",
    "AWS::StepFunctions::StateMachine",
)
SYNTHESIZED_FROM = (
    "stacks",
    "statemachine",
    *(f"lambdas/{name}.py" for name in ("bus", "errors", "request", "settings")),
)
DEPLOY_SECONDS = 60


class DeployFailed(RuntimeError):
    """The template could not be synthesized or deployed; the text says what the tool said."""


@dataclass(frozen=True)
class Deployed:
    """The template on the engine."""

    template: Template
    """As it was synthesized, before it was fitted to the engine."""
    resources: Mapping[str, str]
    """Physical ids by logical ids."""
    bucket: str
    state_machine_arn: str
    secret_arn: str

    def function(self, state: str) -> str:
        """Physical name of the function of a state, such as `RunClaude`."""
        return str(self.resources[self._function(state)])

    def environment(self, state: str) -> dict[str, str]:
        """The environment of a state's function, worked out."""
        properties = fit(self.template, {})["Resources"][self._function(state)]["Properties"]
        return {name: self._text(value) for name, value in properties["Environment"]["Variables"].items()}

    def _function(self, state: str) -> str:
        """The CDK calls it by where it stands, with a hash behind it."""
        for name, resource in self.template["Resources"].items():
            if resource["Type"] == "AWS::Lambda::Function" and re.fullmatch(rf"Functions{state}[0-9A-F]{{8}}", name):
                return str(name)
        raise KeyError(state)

    def _text(self, value: Any) -> str:
        match value:
            case {"Ref": str() as name}:
                return str(self.resources[name])
            case {"Fn::Join": [separator, parts]}:
                return str(separator).join(map(self._text, parts))
        return str(value)


def synthesized(cache: Path, say: Callable[[str], None] = lambda _: None) -> Template:
    """The template, from `cache` while nothing that it is made from has changed. Raises `DeployFailed`.

    `say` hears of it where it has to be made, which takes up to a quarter of a minute.
    """
    kept = cache / f"template-{_inputs_hash()}.json"
    if not _is_json(kept):
        say("Preparing the template (once, until it changes) …")
        text = _synthesize()
        for old in cache.glob("template-*.json"):
            old.unlink()
        fresh = kept.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(kept)
    template: Template = json.loads(kept.read_text())
    return template


def _is_json(kept: Path) -> bool:
    """Whether it is there, and not damaged."""
    try:
        return isinstance(json.loads(kept.read_text()), dict)
    except (FileNotFoundError, ValueError):
        return False


def _inputs_hash() -> str:
    digest = hashlib.sha256(importlib.metadata.version("aws-cdk-lib").encode())
    for name in SYNTHESIZED_FROM:
        if not (ROOT / name).exists():
            raise DeployFailed(f"{ROOT} lacks {name}: this installation is not whole.")
        for path in sorted(_files(ROOT / name)):
            digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    else:
        yield path


def _synthesize() -> str:
    with tempfile.TemporaryDirectory(prefix="claude-workflow-synth-") as out:
        environment = {name: os.environ[name] for name in (*KEPT, "HOME") if name in os.environ} | {"CDK_OUTDIR": out}
        done = subprocess.run(
            [sys.executable, "-m", "stacks"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        templates = list(Path(out).glob("*.template.json"))
        if done.returncode or len(templates) != 1:
            raise DeployFailed(f"The template could not be synthesized:\n{done.stderr.strip() or done.stdout.strip()}")
        return templates[0].read_text()


def deploy(
    engine: Engine,
    template: Template,
    *,
    settings: Mapping[str, str] | None = None,
    secret: Mapping[str, str] | None = None,
) -> Deployed:
    """Deploys `template` as a new stack. Raises `DeployFailed`.

    `settings` replaces environment variables of those functions that have them in the template (a model's URL, a
    directory); `secret` is written into the template's secret, as the operator does in AWS.
    """
    s3, formation = engine.client("s3"), engine.client("cloudformation")
    for bucket in (BUCKET, CODE_BUCKET):
        _bucket(s3, bucket)
    s3.put_object(Bucket=CODE_BUCKET, Key=CODE_KEY, Body=_bootstrap())
    fitted = fit(template, settings or {})
    _adopt_bucket(formation, STACK, fitted)
    update(engine, fitted)
    listed = formation.describe_stack_resources(StackName=STACK)["StackResources"]
    ids = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in listed}
    only = {kind: ids[name] for name, kind in _types(template).items() if name in ids}
    vault = engine.client("secretsmanager")
    secret_arn = vault.describe_secret(SecretId=only["AWS::SecretsManager::Secret"])["ARN"]
    if secret is not None:
        vault.put_secret_value(SecretId=secret_arn, SecretString=json.dumps(dict(secret)))
    return Deployed(template, ids, only["AWS::S3::Bucket"], ids[_express(template)], secret_arn)


def _express(template: Template) -> str:
    """The machine that POSTs start."""
    properties: dict[str, Any] = {name: one.get("Properties", {}) for name, one in template["Resources"].items()}
    return next(name for name, each in properties.items() if each.get("StateMachineType") == "EXPRESS")


def update(engine: Engine, template: Template) -> None:
    """Makes the stack what `template` says. It is given by its address: more than 51,200 bytes a call does not take."""
    s3, formation = engine.client("s3"), engine.client("cloudformation")
    s3.put_object(Bucket=CODE_BUCKET, Key=TEMPLATE_KEY, Body=json.dumps(template).encode())
    url = f"{engine.url}/{CODE_BUCKET}/{TEMPLATE_KEY}"
    formation.update_stack(StackName=STACK, TemplateURL=url, Capabilities=["CAPABILITY_IAM"])
    _await_stack(formation, STACK, "UPDATE")


def _types(template: Template) -> dict[str, str]:
    return {name: resource["Type"] for name, resource in template["Resources"].items()}


def _bucket(s3: Any, name: str) -> None:
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # from an earlier start
        s3.create_bucket(Bucket=name)


def _adopt_bucket(formation: Any, stack: str, fitted: Mapping[str, Any]) -> None:
    """Makes the stack out of the bucket that is there, as one imports a resource in AWS; its settings follow."""
    buckets = [name for name, resource in fitted["Resources"].items() if resource["Type"] == "AWS::S3::Bucket"]
    identifier = {"BucketName": BUCKET}
    bare = {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain", "Properties": identifier}
    formation.create_change_set(
        StackName=stack,
        ChangeSetName="adopt",
        ChangeSetType="IMPORT",
        TemplateBody=json.dumps({"Resources": dict.fromkeys(buckets, bare)}),
        ResourcesToImport=[
            {"ResourceType": "AWS::S3::Bucket", "LogicalResourceId": name, "ResourceIdentifier": identifier}
            for name in buckets
        ],
    )
    _await_change_set(formation, stack)
    formation.execute_change_set(StackName=stack, ChangeSetName="adopt")
    _await_stack(formation, stack, "IMPORT")


def _bootstrap() -> bytes:
    """A function's whole package: the start of a worker, with the handler that the engine names."""
    script = (
        "#!/bin/sh\n"
        f"export PYTHONPATH={shlex.quote(str(ROOT))}\n"
        f'exec {shlex.quote(sys.executable)} -m claude_workflow.local.worker "$_HANDLER"\n'
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = 0o755 << 16
        package.writestr(entry, script)
    return packed.getvalue()


def _await_change_set(formation: Any, stack: str) -> None:
    def status() -> str:
        return str(formation.describe_change_set(StackName=stack, ChangeSetName="adopt")["Status"])

    _await(lambda: status() == "CREATE_COMPLETE")


def _await(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEPLOY_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise DeployFailed(f"The engine did not deploy the template within {DEPLOY_SECONDS} seconds.")
        time.sleep(0.02)


def _await_stack(formation: Any, stack: str, action: str) -> None:
    def status() -> str:
        return str(formation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])

    _await(lambda: not status().endswith("IN_PROGRESS"))
    if status() != f"{action}_COMPLETE":
        raise DeployFailed(f"The engine refused the template: {'; '.join(_reasons(formation, stack))}")


def _reasons(formation: Any, stack: str) -> Iterator[str]:
    for event in formation.describe_stack_events(StackName=stack)["StackEvents"]:
        if event["ResourceStatus"].endswith("FAILED"):
            yield f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', 'no reason given')}"


def fit(template: Template, settings: Mapping[str, str]) -> dict[str, Any]:
    """What the engine gets of `template`."""
    kept = {name: one for name, one in template["Resources"].items() if one["Type"] in DEPLOYED}
    fitted = {name: _fitted(resource, set(kept), settings) for name, resource in kept.items()}
    return {"Resources": _referring(fitted, _types(template))}


def _referring(value: Any, types: Mapping[str, str]) -> Any:
    """`value` with references to secrets as in AWS, where a secret's `Ref` is its ARN; the engine takes its name. What
    refers to an API key has its logical id, by which the gateway knows it."""
    match value:
        case {"Ref": str() as name} if types.get(name) == "AWS::SecretsManager::Secret":
            return {"Fn::GetAtt": [name, "Id"]}
        case {"Ref": str() as name} if types.get(name) == "AWS::ApiGateway::ApiKey":
            return name
        case dict():
            return {name: _referring(item, types) for name, item in value.items()}
        case list():
            return [_referring(item, types) for item in value]
    return value


def _fitted(resource: Mapping[str, Any], kept: set[str], settings: Mapping[str, str]) -> dict[str, Any]:
    properties = dict(resource.get("Properties", {}))
    if resource["Type"] == "AWS::S3::Bucket":
        properties["BucketName"] = BUCKET
    if resource["Type"] == "AWS::Lambda::Function":
        properties = _function(properties, settings)
    needs = resource.get("DependsOn", [])
    needs = [name for name in ([needs] if isinstance(needs, str) else needs) if name in kept]
    return {"Type": resource["Type"], "Properties": properties, "DependsOn": needs}


def _function(properties: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    variables = properties.get("Environment", {}).get("Variables", {})
    replaced = {name: settings.get(name, value) for name, value in variables.items()}
    left_out = ("PackageType", "ImageConfig", "Architectures", "VpcConfig")
    return {name: value for name, value in properties.items() if name not in left_out} | {
        "Runtime": "provided.al2023",
        "Handler": _handler(properties),
        "Code": {"S3Bucket": CODE_BUCKET, "S3Key": CODE_KEY},
        "Environment": {"Variables": replaced},
    }


def _handler(properties: Mapping[str, Any]) -> str:
    """Only RunClaude's are of an image, whose Dockerfile names the handler."""
    return str(properties.get("Handler") or _module("RunClaude"))


def _module(state: str) -> str:
    """`RunClaude` is `lambdas.run_claude.handler`: a state, its file and its function share one name."""
    name = "".join(f"_{char.lower()}" if char.isupper() else char for char in state).lstrip("_")
    return f"lambdas.{name}.handler"
