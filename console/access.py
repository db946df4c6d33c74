"""Open what a command reaches: the cluster, and the templates and settings of labs.

console.verify and console.schedules call it. The access is a kubeconfig file, the job's own, or a
ServiceAccount.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dispatcher.errors import InvalidSettings
from dispatcher.settings import read_settings
from jobs.cluster.access import ClusterAccess, kubeconfig_access, service_account_access
from jobs.cluster.client import Cluster
from jobs.config.environment import StoreSettings
from jobs.config.objectstore import ObjectStore
from jobs.config.stored import Configs
from jobs.failures import Failure


def open_cluster(environ: Mapping[str, str]) -> Cluster:
    """Return the cluster that KUBECONFIG, KUBECONFIG_OBJECT or the ServiceAccount names.

    Raises:
        InvalidSettings: the file cannot be read.
        JobError: there is no access, or it cannot be used.
    """
    access = _access(environ)
    cluster = Cluster(access)
    if access.client_pem_file:
        Path(access.client_pem_file).unlink()  # read by now, and it holds a private key
    return cluster


def open_configs(environ: Mapping[str, str]) -> Configs:
    """Return the templates and settings of labs. Raises JobError when nothing says where they are."""
    try:
        return Configs(ObjectStore(read_settings(environ, StoreSettings.from_environment)))
    except InvalidSettings as exc:
        raise Failure.CONFIGURATION_MISSING.error(key="of labs", evidence=str(exc)) from exc


def _access(environ: Mapping[str, str]) -> ClusterAccess:
    if path := environ.get("KUBECONFIG"):
        try:
            return kubeconfig_access(Path(path).read_bytes())
        except OSError as exc:
            raise InvalidSettings([f"KUBECONFIG: cannot read {path} ({exc.strerror})"]) from exc
    if key := environ.get("KUBECONFIG_OBJECT"):
        store = ObjectStore(read_settings(environ, StoreSettings.from_environment))
        return kubeconfig_access(store.read(key).content)
    if "KUBERNETES_SERVICE_HOST" not in environ:
        raise InvalidSettings(["KUBECONFIG: not set, and this is no container of a cluster"])
    return service_account_access()
