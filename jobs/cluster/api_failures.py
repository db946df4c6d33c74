"""Which failure an answer of the API server is.

Statuses are those of https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

from __future__ import annotations

import re

from jobs.cluster.client import ApiError, ApiUnavailable
from jobs.errors import JobError
from jobs.failures import Failure

#: Admission (Pod Security, policies, limits) answers 403 too, and repeats what it objects to.
_RBAC_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: User "[^"]*" cannot \w+ (resource|path)'
_QUOTA_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: exceeded quota'


def api_failure(error: ApiError | ApiUnavailable) -> JobError:
    """Return the job's error for one of the API server."""
    return _failure(error).error(evidence=str(error))


def _failure(error: ApiError | ApiUnavailable) -> Failure:
    if isinstance(error, ApiUnavailable):
        return Failure.CLUSTER_AWAY
    if error.status == 403 and re.match(_QUOTA_SAYS_NO, error.message):
        return Failure.QUOTA_EXCEEDED
    if error.status == 409:
        return Failure.CHANGED_MEANWHILE
    if error.status == 401 or (error.status == 403 and re.match(_RBAC_SAYS_NO, error.message)):
        return Failure.CLUSTER_REFUSES_ACCESS
    return Failure.CLUSTER_REFUSES_LAB
