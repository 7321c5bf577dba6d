"""The kinds of KubeRay that deploy/kuberay/ uses, strict: what a kind does not know is an error.

KubeRay publishes no schema as a package, and its own is 700 kB, most of it pod templates. So the
fields are written down here from its API of version 1.6 (ray.io/v1), and pod templates are checked
by the schema of Kubernetes itself.
"""

from typing import Annotated, Any, Literal

import kubernetes_validate
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from ray.serve.schema import ServeDeploySchema

KUBERNETES = "1.34"
Document = dict[str, Any]  # Any: YAML


def check(document: Document) -> None:
    """Check an object by the schema of its kind: KubeRay's, or that of Kubernetes.

    Raises:
        ValueError: it is not as its kind must be.
    """
    if document.get("apiVersion") == "ray.io/v1":
        KINDS[document["kind"]].model_validate(document)
        return
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        raise ValueError(f"{path}: {error.message}") from error


def problem(document: Document) -> str | None:
    """Say in a line what is wrong with an object, if anything is."""
    try:
        check(document)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (KeyError, ValueError) as error:
        return str(error)
    return None


def pod_template(template: Document) -> Document:
    """Check a pod template: its pod must be one."""
    assert set(template) <= {"metadata", "spec"}, f"a template has no {sorted(template)}"
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {}, **template})
    return template


def container_part(part: str) -> AfterValidator:
    """Check a part of a container, as Kubernetes has it."""

    def check_part(value: Any) -> Any:  # Any: YAML
        container = {"name": "any", "image": "any", part: value}
        pod_template({"spec": {"containers": [container]}})
        return value

    return AfterValidator(check_part)


PodTemplate = Annotated[Document, AfterValidator(pod_template)]
Env = Annotated[list[Document], container_part("env")]
Resources = Annotated[Document, container_part("resources")]
SecurityContext = Annotated[Document, container_part("securityContext")]


class Strict(BaseModel):
    """A part of a kind."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=50)]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AuthOptions(Strict):
    mode: Literal["disabled", "token"] = "token"
    secret_name: str | None = None


class SecretKey(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secret_key_ref: SecretKey


class RedisCredential(Strict):
    value_from: ValueFrom
    """KubeRay would also take a literal `value`; a password has no place in a file."""


class GcsFaultToleranceOptions(Strict):
    redis_address: str
    redis_password: RedisCredential
    redis_username: RedisCredential | None = None
    external_storage_namespace: str | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: int | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    resources: Resources | None = None
    security_context: SecurityContext | None = None
    env: Env = []


class HeadGroupSpec(Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    service_type: Literal["ClusterIP"] = "ClusterIP"
    """NodePort and LoadBalancer would carry the dashboard out of the cluster."""


class WorkerGroupSpec(Strict):
    group_name: str
    replicas: int = 0
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str]
    template: PodTemplate
    idle_timeout_seconds: int | None = None
    priority: int | None = None
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    num_of_hosts: int = 1


class RayClusterSpec(Strict):
    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec]
    gcs_fault_tolerance_options: GcsFaultToleranceOptions | None = None
    suspend: bool = False


class RayCluster(Strict):
    api_version: str
    kind: str
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Strict):
    entrypoint: str
    cluster_selector: dict[str, str] | None = None
    ray_cluster_spec: RayClusterSpec | None = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = (
        None
    )
    submitter_pod_template: PodTemplate | None = None
    job_id: str | None = None
    metadata: dict[str, str] = {}
    backoff_limit: int = 0
    active_deadline_seconds: int | None = None
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: int = 0
    suspend: bool = False

    def model_post_init(self, context: Any) -> None:  # Any: pydantic's
        """Check what KubeRay checks of the whole."""
        if (self.cluster_selector is None) == (self.ray_cluster_spec is None):
            raise ValueError("a job has either a cluster of its own or one that it selects")
        if self.cluster_selector and (self.shutdown_after_job_finishes or self.backoff_limit):
            raise ValueError("a job cannot end or remake the cluster that it selects")
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished is for clusters that end with their job")


class RayJob(Strict):
    api_version: str
    kind: str
    metadata: Metadata
    spec: RayJobSpec


def serve_config(text: str) -> str:
    """Check the applications of a service by Ray Serve's own schema."""
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    return text


class RayServiceSpec(Strict):
    serve_config_v2: Annotated[str, AfterValidator(serve_config)]
    ray_cluster_config: RayClusterSpec
    exclude_head_pod_from_serve_svc: bool = False
    upgrade_strategy: dict[str, str] = {}


class RayService(Strict):
    api_version: str
    kind: str
    metadata: Metadata
    spec: RayServiceSpec


KINDS: dict[str, type[Strict]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
}
