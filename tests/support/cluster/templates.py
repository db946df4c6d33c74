"""Small templates of a lab, with every placeholder in use; and what filling one must never change."""

from __future__ import annotations

from typing import Any

POD_AND_SERVICE = b"""\
apiVersion: v1
kind: Pod
metadata:
  labels: {tier: lab}
spec:
  automountServiceAccountToken: false
  containers:
    - name: lab
      image: ${docker_image}
      env:
        - {name: LAB, value: "${lab_id}/${lab_instance_id}"}
        - {name: STUDENT, value: "${student_id}"}
        - {name: WHERE, value: "${namespace}/${pod_name}"}
      ports: [{containerPort: 8080}]
      resources:
        limits: {cpu: "${cpu_limit}", memory: "${memory_limit}", ephemeral-storage: "${storage_limit}"}
        requests: {cpu: "${cpu_request}", memory: "${memory_request}"}
---
apiVersion: v1
kind: Service
spec:
  ports: [{port: 8080, targetPort: 8080}]
"""

NETWORK_POLICY = b"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
spec:
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 8080}]}]
  egress: [{ports: [{port: 53, protocol: UDP}]}]
"""

SETTINGS = b"""\
allowed_images: ["registry.gitlab.com/autolabs/labs/*"]
"""


def shape(tree: Any) -> Any:
    """Reduce a tree to what a value must never change: keys, lengths, types."""
    if isinstance(tree, dict):
        return {key: shape(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shape(value) for value in tree]
    return type(tree)
