"""Field names of KubeRay's RayJob, ``ray.io/v1``, of about v1.6: what our manifests may use.

Gathered from the operator's published types; what has come since is left out.

A name maps to the fields below it; None stands for a value, a list of values or a free map; ``POD`` for a pod template
of Kubernetes, which has a schema of its own.
"""

POD = "PodTemplateSpec"


def _values(names):
    return dict.fromkeys(names.split())


_AUTOSCALER = _values(
    "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env envFrom volumeMounts "
    "command args"
)
_HEAD = {
    **_values("headService enableIngress resources labels rayStartParams serviceType"),
    "template": POD,
}
_WORKERS = {
    **_values(
        "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds resources labels rayStartParams "
        "numOfHosts"
    ),
    "scaleStrategy": {"workersToDelete": None},
    "template": POD,
}
_CLUSTER = {
    **_values("suspend managedBy headServiceAnnotations enableInTreeAutoscaling gcsFaultToleranceOptions rayVersion"),
    "upgradeStrategy": {"type": None},
    "authOptions": _values("mode secretName enableK8sTokenAuth"),
    "autoscalerOptions": _AUTOSCALER,
    "headGroupSpec": _HEAD,
    "workerGroupSpecs": _WORKERS,
}
_RULES = {"policy": None, "condition": _values("jobStatus jobDeploymentStatus ttlSeconds")}

RAY_JOB = {
    **_values(
        "activeDeadlineSeconds backoffLimit metadata clusterSelector managedBy entrypoint runtimeEnvYAML jobId "
        "submissionMode entrypointResources entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished "
        "shutdownAfterJobFinishes suspend"
    ),
    "submitterPodTemplate": POD,
    "submitterConfig": {"backoffLimit": None},
    "deletionStrategy": {"deletionRules": _RULES},
    "rayClusterSpec": _CLUSTER,
}
VALUES = {
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "mode": {"token", "disabled"},
    "policy": {"DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"},
    "jobStatus": {"SUCCEEDED", "FAILED"},
}
