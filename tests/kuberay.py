"""What KubeRay 1.7 takes as RayCluster and RayJob (ray.io/v1), as far as the files in cluster/ use it.

Written for them; pod templates are left to the schemas of Kubernetes. Any other key is an error, where the published
schema would let it pass; a key that a new file needs is added here from KubeRay's reference of its API.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]


def an_object(required: str, **properties: Schema) -> Schema:
    """required: names, with spaces between."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SWITCH: Schema = {"type": "boolean"}
TEMPLATE: Schema = {"type": "object", "required": ["spec"]}
START: Schema = {"type": "object", "additionalProperties": TEXT}
METADATA = an_object("name", name=TEXT, namespace=TEXT, labels=START, annotations=START)
CLUSTER = an_object(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=an_object("mode", mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=SWITCH),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=an_object("", idleTimeoutSeconds=COUNT, resources={"type": "object"}),
    gcsFaultToleranceOptions={"type": "object"},
    headGroupSpec=an_object("template", rayStartParams=START, template=TEMPLATE, serviceType=TEXT),
    workerGroupSpecs={
        "type": "array",
        "minItems": 1,
        "items": an_object(
            "groupName minReplicas maxReplicas template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            numOfHosts=COUNT,
            suspend=SWITCH,
            rayStartParams=START,
            template=TEMPLATE,
        ),
    },
)
MODES = ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]
JOB = an_object(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": MODES},
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    preRunningDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=SWITCH,
    ttlSecondsAfterFinished=COUNT,
    suspend=SWITCH,
    submitterPodTemplate=TEMPLATE,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=CLUSTER,
)
KINDS = {
    kind: an_object("spec metadata", apiVersion={"const": "ray.io/v1"}, kind=TEXT, metadata=METADATA, spec=spec)
    for kind, spec in {"RayCluster": CLUSTER, "RayJob": JOB}.items()
}


def problems(document: dict[str, Any]) -> list[str]:
    """Of a RayCluster or a RayJob, one line each; what the schema does not see included."""
    import jsonschema

    found = [
        f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(KINDS[document["kind"]]).iter_errors(document)
    ]
    if found:
        return found
    for group in cluster_of(document)["workerGroupSpecs"]:
        low, start, high = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
        if not low <= start <= high:
            found.append(f"{group.get('groupName')}: {start} replicas are not within {low} and {high}")
    return found


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def pods_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each pod template as a Pod that Kubernetes' own schema can be asked about."""
    cluster = cluster_of(document)
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster.get("workerGroupSpecs", [])]
    templates += [document["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in document["spec"] else []
    for template in templates:
        metadata = {"name": "pod", **template.get("metadata", {})}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
