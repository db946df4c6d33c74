"""Small templates of a lab, with every placeholder in use."""

from __future__ import annotations

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
