"""RayClusters as the player plays them: their pods, and what they say of themselves."""

from __future__ import annotations

import copy

from player_api import Api, Object, condition, full_name, is_true, merged, now, owner, random_suffix
from player_kubelet import Kubelet
from player_pod_status import SUBMITTER


class Clusters:
    """The controller of RayClusters."""

    def __init__(self, api: Api, nodes: Kubelet) -> None:
        self.api = api
        self.nodes = nodes

    def reconcile(self, cluster: Object) -> None:
        """Pods of a RayCluster: those that lack are made, those that failed are replaced."""
        name = cluster["metadata"]["name"]
        pods = [
            one
            for one in self.api.listed("pods")
            if one["metadata"].get("labels", {}).get("ray.io/cluster") == name
        ]
        was_up = is_true(cluster.get("status", {}).get("conditions", []), "HeadPodReady")
        for pod in pods:
            kind = pod["metadata"]["labels"]["ray.io/node-type"]
            over = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
            if over and (kind == "worker" or not was_up):
                self.api.delete("pods", pod)
                text = (
                    f"Deleted {kind} Pod {full_name(pod)}; Pod status: "
                    f"{pod['status']['phase']}; Pod restart policy: Never"
                )
                reason = "DeletedWorkerPod" if kind == "worker" else "DeletedHeadPod"
                self.api.event(cluster, reason, text, who="raycluster-controller")
        spec = cluster["spec"]
        groups = [("headgroup", 1, spec["headGroupSpec"])]
        groups += [
            (one["groupName"], one.get("replicas", 0), one)
            for one in spec.get("workerGroupSpecs", [])
        ]
        for group, count, wanted in groups:
            there = [one for one in pods if one["metadata"]["labels"].get("ray.io/group") == group]
            if group == "headgroup" and was_up and not there:
                # A head that is lost ends the attempt; see _head_has_failed.
                continue
            for _ in range(count - len(there)):
                self._make_pod(cluster, group, wanted)
        self._tell_cluster(cluster, pods, sum(count for _, count, _ in groups[1:]))

    def _make_pod(self, cluster: Object, group: str, wanted: Object) -> None:
        metadata, is_head = cluster["metadata"], group == "headgroup"
        name = metadata["name"]
        kind = "head" if is_head else "worker"
        template = wanted["template"]
        labels = {
            **template["metadata"].get("labels", {}),
            "ray.io/cluster": name,
            "ray.io/node-type": kind,
            "ray.io/group": group,
            "ray.io/is-ray-node": "yes",
            "ray.io/identifier": f"{name}-{kind}",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        for key in ("ray.io/originated-from-cr-name", "ray.io/originated-from-crd"):
            if key in metadata.get("labels", {}):
                labels[key] = metadata["labels"][key]
        spec = copy.deepcopy(template["spec"])
        parameters = " ".join(
            f"--{key}={value}" for key, value in (wanted.get("rayStartParams") or {}).items()
        )
        start = f"ray start {'--head ' if is_head else ''}--block {parameters}".strip()
        variables = spec["containers"][0].setdefault("env", [])
        variables += [
            {"name": "RAY_CLUSTER_NAME", "value": name},
            {"name": "KUBERAY_GEN_RAY_START_CMD", "value": start},
        ]
        submission = self.nodes.submissions.get(name)
        if is_head and submission is not None and self._is_sidecar(metadata):
            spec["containers"].append(
                {
                    "name": SUBMITTER,
                    "image": spec["containers"][0]["image"],
                    "env": [{"name": "RAY_JOB_SUBMISSION_ID", "value": submission.job_id}],
                }
            )
        middle = "head" if is_head else f"{group}-worker"
        made = self.api.create(
            "pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-{middle}-{random_suffix()}",
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "annotations": template["metadata"].get("annotations", {}),
                    "ownerReferences": [owner(cluster)],
                },
                "spec": spec,
            },
        )
        if made is not None:
            reason = "CreatedHeadPod" if is_head else "CreatedWorkerPod"
            text = f"Created {kind} Pod {full_name(made)}"
            self.api.event(cluster, reason, text, who="raycluster-controller")

    def _is_sidecar(self, metadata: Object) -> bool:
        owner = metadata["ownerReferences"][0]["name"]
        job = self.api.get("rayjobs", owner, metadata["namespace"])
        return job is not None and job["spec"].get("submissionMode") == "SidecarMode"

    def _tell_cluster(self, cluster: Object, pods: list[Object], num_workers: int) -> None:
        def ready(pod: Object) -> bool:
            return bool(pod.get("status", {}).get("phase") == "Running")

        kinds: dict[str, list[Object]] = {"head": [], "worker": []}
        for pod in pods:
            kinds[pod["metadata"]["labels"]["ray.io/node-type"]].append(pod)
        old = cluster.get("status", {})
        conditions: list[Object] = old.get("conditions", [])
        heads, workers = kinds["head"], kinds["worker"]
        head_ready = bool(heads) and ready(heads[0])
        all_ready = head_ready and sum(map(ready, workers)) >= num_workers
        if head_ready != is_true(conditions, "HeadPodReady") or not conditions:
            reason = "HeadPodRunningAndReady" if head_ready else "ContainersNotReady"
            conditions = merged(conditions, condition("HeadPodReady", head_ready, reason))
        if all_ready and not is_true(conditions, "RayClusterProvisioned"):
            text = "All Ray Pods are ready for the first time"
            ready_now = condition(
                "RayClusterProvisioned", True, "AllPodRunningAndReadyFirstTime", text
            )
            conditions = merged(conditions, ready_now)
        fields: Object = {
            "desiredWorkerReplicas": num_workers,
            "availableWorkerReplicas": sum(map(ready, workers)),
            "readyWorkerReplicas": sum(map(ready, workers)),
            "conditions": conditions,
            "observedGeneration": cluster["metadata"]["generation"],
        }
        if is_true(conditions, "RayClusterProvisioned"):
            fields["state"] = "ready"
        if heads:
            fields["head"] = {
                "podName": heads[0]["metadata"]["name"],
                "serviceName": f"{cluster['metadata']['name']}-head-svc",
                **({"podIP": heads[0]["status"]["podIP"]} if head_ready else {}),
            }
        if any(old.get(key) != value for key, value in fields.items()):
            self.api.set_status("rayclusters", cluster, {**fields, "lastUpdateTime": now()})
