"""Kubernetes: what a run is there, as manifests that KubeRay's operator takes."""
