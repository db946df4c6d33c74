"""Complete a lab's Pod with what is safe by default, whatever its template leaves out.

Called by jobs.config.manifests after a template is filled in. What the template says wins; null or an empty
text there leaves the default out. The spec hash is taken before: another default makes no lab another one.
"""

from __future__ import annotations

from jobs.config.naming import Manifest

#: Annotations by which an autoscaler leaves a node alone for its labs: moving a lab ends a student's work.
KEEP_ON_NODE = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


def apply_defaults(pod: Manifest) -> None:
    """Set in a Pod what its template leaves out; its metadata and annotations are mappings."""
    _keep_on_node(pod)


def _keep_on_node(pod: Manifest) -> None:
    annotations = KEEP_ON_NODE | (pod["metadata"].get("annotations") or {})
    pod["metadata"]["annotations"] = {
        key: value for key, value in annotations.items() if key not in KEEP_ON_NODE or value not in (None, "")
    }
