"""Classify every way a task can fail: category, retried or not, audience, and the sentence that people read.

jobs.cluster.pod_status says which row a Pod is, jobs.cluster.client an answer of the API server. All other
rows are raised where the failure is met. Nothing is tried again that is not marked so here.
"""

from __future__ import annotations

import enum

from dispatcher.failure_contract import Audience, Category
from jobs.errors import AGAIN, FailureRow, JobError, ObjectsLeft, PermanentError, Row, TransientError

_TEACHER, _ADMIN, _NOBODY = Audience.TEACHER, Audience.ADMIN, Audience.NOBODY
_IMAGE = Category.PERMANENT_IMAGE_ERROR
_RIGHTS = Category.PERMANENT_PERMISSION_ERROR
_INVALID = Category.PERMANENT_INVALID_REQUEST
_ROOM = Category.TEMPORARY_RESOURCE_ERROR
_NETWORK = Category.TEMPORARY_NETWORK_ERROR


# fmt: off
@enum.unique
class Failure(FailureRow):
    """Every way to fail; the lower-case name is the `cause` of ledger, notifications and log."""

    # The lab's image, as the kubelet and the registry say.
    IMAGE_NOT_LOADABLE = Row(_IMAGE, False, _TEACHER,
        'The image "{image}" of this lab cannot be loaded. The teacher must correct the image name or its'
        " access; starting again will not help until then.")
    IMAGE_NAME_INVALID = Row(_IMAGE, False, _TEACHER,
        'The image name "{image}" of this lab is not valid. The teacher must correct it.')
    IMAGE_NOT_ON_SERVER = Row(_IMAGE, False, _TEACHER,
        'The image "{image}" of this lab is not on the server and may not be loaded. The teacher must'
        " correct it.")
    IMAGE_NOT_ALLOWED = Row(_IMAGE, False, _TEACHER,
        'The image "{image}" is not one that labs may use. The teacher must choose an allowed image'
        " ({allowed}).")
    REGISTRY_AWAY = Row(_NETWORK, True, _ADMIN,
        'The server of the image "{image}" does not answer')
    # What its container does.
    PROGRAM_ENDS = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab ends right after its start. The teacher must'
        " correct the image.")
    PROGRAM_NOT_STARTED = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab cannot be started. The teacher must correct the'
        " image.")
    CONTAINER_NOT_CREATED = Row(_IMAGE, False, _TEACHER,
        'The image "{image}" of this lab cannot be started. The teacher must correct the image.')
    CONTAINER_NOT_ALLOWED = Row(_IMAGE, False, _TEACHER,
        'The image "{image}" of this lab cannot be started as it is, for example because it wants to run'
        " as root. The teacher must correct the image.")
    OUT_OF_MEMORY = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab needs more memory than the lab may use. The'
        " teacher must give the lab more memory or correct the image.")
    OUT_OF_DISK = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab writes more data than the lab may keep. The teacher'
        " must give the lab more storage or correct the image.")
    DOES_NOT_ANSWER = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab runs but does not answer. The teacher must'
        " correct the image.")
    # Room in the cluster.
    QUOTA_EXCEEDED = Row(_ROOM, True, _ADMIN, "All places for labs are taken at the moment")
    NO_ROOM = Row(_ROOM, True, _ADMIN, "There is no free place for this lab at the moment")
    NO_FITTING_SERVER = Row(_ROOM, True, _ADMIN, "No server may take this lab at the moment")
    NODE_ENDED_IT = Row(_ROOM, True, _ADMIN, "The server had no room for this lab")
    SLOW_START = Row(_ROOM, True, _ADMIN, "The lab takes longer than usual to start")
    SLOW_STOP = Row(_ROOM, True, _ADMIN, "The lab takes longer than usual to stop")
    CHANGED_MEANWHILE = Row(_ROOM, True, _ADMIN, "The lab's objects were changed by somebody else meanwhile")
    REMOVED_MEANWHILE = Row(_ROOM, True, _ADMIN, "The lab was removed while it started")
    # Services that do not answer.
    CLUSTER_AWAY = Row(_NETWORK, True, _ADMIN, "The cluster does not answer at the moment")
    DATABASE_AWAY = Row(_NETWORK, True, _ADMIN, "The platform's database does not answer")
    STORE_AWAY = Row(_NETWORK, True, _ADMIN, "The platform's configuration store does not answer")
    # Rights.
    CLUSTER_REFUSES_ACCESS = Row(_RIGHTS, False, _ADMIN,
        "The platform lacks a right it needs for labs. The administrator must correct its access.")
    CLUSTER_ACCESS_MISSING = Row(_RIGHTS, False, _ADMIN,
        "The platform has no access to the cluster; the administrator must mount a ServiceAccount token"
        " or set KUBECONFIG_OBJECT.")
    KUBECONFIG_INVALID = Row(_RIGHTS, False, _ADMIN,
        "The platform's kubeconfig cannot be used; the administrator must correct it.")
    CERTIFICATES_INVALID = Row(_RIGHTS, False, _ADMIN,
        "The platform's certificates for the cluster cannot be used; the administrator must correct its"
        " access.")
    DATABASE_REFUSES = Row(_RIGHTS, False, _ADMIN,
        "The platform's database refuses what the job wants to write; the administrator must correct its"
        " tables or rights.")
    STORE_REFUSES_ACCESS = Row(_RIGHTS, False, _ADMIN,
        "The platform may not read its configuration {key}; the administrator must correct the access.")
    STORE_REFUSES_REQUEST = Row(_RIGHTS, False, _ADMIN,
        "The platform's configuration store refuses the request with {status}; the administrator must correct"
        " S3_ENDPOINT, S3_REGION or the store.")
    DATABASE_UNTRUSTED = Row(_RIGHTS, False, _ADMIN,
        "The certificate of the platform's database is not trusted; the administrator must correct CA_FILE.")
    STORE_UNTRUSTED = Row(_RIGHTS, False, _ADMIN,
        "The certificate of the platform's configuration store is not trusted; the administrator must correct"
        " CA_FILE.")
    # Templates, settings and what else the platform itself got wrong.
    CONFIGURATION_MISSING = Row(_INVALID, False, _ADMIN,
        "The platform's configuration {key} is missing; the administrator must upload it.")
    BUCKET_MISSING = Row(_INVALID, False, _ADMIN,
        "The platform's configuration store has no bucket {bucket}; the administrator must correct S3_BUCKET"
        " or upload the configuration.")
    TEMPLATE_INVALID = Row(_INVALID, False, _ADMIN,
        "The platform's description of labs has an error; the administrator must correct it.")
    NAME_TAKEN = Row(_INVALID, False, _ADMIN,
        "The name of this lab's objects is taken by something else in the cluster. The administrator must"
        " remove it.")
    CLUSTER_REFUSES_LAB = Row(_INVALID, False, _ADMIN,
        "The cluster refuses this lab as it is described. The teacher or the administrator must correct"
        " the lab's settings.")
    INTERNAL_ERROR = Row(_INVALID, False, _ADMIN,
        "The platform made an error of its own; the administrator must look at it.")
    CONTAINER_CRASHED = Row(_INVALID, False, _ADMIN,
        "The platform failed several times at this request; the administrator must look at it.")
    # The request.
    RESOURCES_TOO_LARGE = Row(_INVALID, False, _TEACHER,
        "The lab asks for {name} {asked}; at most {most} is allowed. The teacher must ask for less.")
    REQUEST_INVALID = Row(_INVALID, False, _ADMIN,
        "The request for this lab is not valid: {problem}. Whoever sent it must correct it.")
    FOLLOW_UP_UNSUPPORTED = Row(_INVALID, False, _ADMIN,
        "The request for this lab asks for {unsupported}, which is not supported. Whoever sent it must"
        " publish the follow-up task itself.")
    MESSAGE_UNREADABLE = Row(_INVALID, False, _ADMIN, "{problem}")
    #: Retried, because the message may be ahead of the backend's commit.
    LAB_UNKNOWN = Row(_INVALID, True, _ADMIN, "Lab {lab_instance_id} is not in the database")
    # Other resources for a lab that runs; whatever comes of it, the lab goes on.
    LAB_NOT_STARTED = Row(_INVALID, True, _ADMIN,
        "Lab {lab_instance_id} has not started yet, so its resources cannot be changed")
    RESIZE_OVER_QUOTA = Row(_ROOM, True, _ADMIN,
        "All that labs may use together is taken at the moment, so this lab goes on with {kept} and cannot"
        " have {asked}")
    RESIZE_INFEASIBLE = Row(_INVALID, False, _TEACHER,
        "The lab asks for {asked}, which is more than the server it runs on has. It goes on with {kept}.")
    RESIZE_DEFERRED = Row(_ROOM, False, _TEACHER,
        "The lab asks for {asked}, for which the server it runs on has no room at the moment. It goes on with"
        " {kept}; please ask again later.")
    RESIZE_BELOW_USE = Row(_INVALID, False, _TEACHER,
        "The lab asks for {asked}, but uses more memory already. It goes on with {kept}; ask for more, or end"
        " programs in the lab.")
    RESIZE_REFUSED = Row(_INVALID, False, _ADMIN,
        "The cluster refuses {asked} for this lab. It goes on with {kept}; the administrator must correct the"
        " limits.")
    RESIZE_STUCK = Row(_ROOM, False, _ADMIN,
        "The server this lab runs on did not give it {asked} in time. It goes on with {kept}; the"
        " administrator must look at it.")
    # Not begun.
    CANCELLED = Row(_INVALID, False, _NOBODY, "The task was cancelled.")
    EXPIRED = Row(_ROOM, False, _NOBODY,
        "The request expired before it could be performed. Please send it again.")
    # The cleanup.
    NEVER_STARTED = Row(_ROOM, False, _ADMIN,
        "This lab could not be started within {minutes} minutes. Please start it again; the administrator"
        " must look at why.")
    CLOCKS_DIFFER = Row(_INVALID, False, _ADMIN,
        "Nothing was done, because {problem}. The administrator must correct the clock that is wrong.")
    # A lab that is no longer what its row says (jobs.verify).
    REQUEST_LOST = Row(_NETWORK, False, _ADMIN,
        "The request for this lab was lost. Please start it again.")
    POD_GONE = Row(_ROOM, False, _ADMIN,
        "This lab is gone from the cluster. Please start it again.")
    OBJECT_GONE = Row(_ROOM, False, _ADMIN,
        "A part of this lab was gone from the cluster, so the lab was ended. Please start it again.")

    # A lab that could be used, and cannot any more (jobs.checks.health).
    POD_EVICTED = Row(_ROOM, False, _ADMIN,
        "The server had no room for this lab any more and ended it. Please start it again.")
    NODE_AWAY = Row(_NETWORK, False, _ADMIN,
        "The server that this lab was on does not answer any more. Please start it again.")
    PROGRAM_ENDED = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab has ended. Please start the lab again; if it happens'
        " again, the teacher must correct the image.")
    PROGRAM_CRASHES = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab ends again and again. The teacher must correct the'
        " image.")
    STOPPED_ANSWERING = Row(_IMAGE, False, _TEACHER,
        'The program in the image "{image}" of this lab does not answer any more. Please start the lab again;'
        " if it happens again, the teacher must correct the image.")

    # A periodic task that does not believe what it sees (jobs.checks).
    TOO_MANY_AT_ONCE = Row(_INVALID, False, _ADMIN,
        "Nothing was done, because {problem}. The administrator must look, and may repeat it with force.")
# fmt: on


#: Failures of the message itself: nothing was begun.
NO_REQUEST = {Failure.MESSAGE_UNREADABLE, Failure.REQUEST_INVALID, Failure.FOLLOW_UP_UNSUPPORTED}
#: Failures of tasks that are not performed, though nothing is wrong with them.
REVOKED = {Failure.CANCELLED, Failure.EXPIRED}


def as_recorded(cause: str, sentence: str, evidence: str) -> JobError:
    """Return the error of a failure that the ledger knows, perhaps from another release."""
    failure = Failure.__members__.get(cause.upper())
    if failure is None:
        return Failure.INTERNAL_ERROR.error(evidence=f"{cause} {sentence} {evidence}")
    return PermanentError(failure, sentence, evidence=evidence)


def objects_left(error: TransientError) -> ObjectsLeft:
    """Return the error of a task that has only to take down what is left of its lab."""
    return ObjectsLeft(error.failure, error.sentence, evidence=error.evidence)


def given_up(error: TransientError, attempts: int, what_next: str) -> PermanentError:
    """Return the error of a task that failed in its last attempt; `what_next` is a part of its sentence."""
    times = "once" if attempts == 1 else f"{attempts} times"
    ending = f". It was tried {times}. {what_next}; the administrator must look at it."
    sentence = error.sentence.removesuffix(AGAIN) + ending
    return PermanentError(error.failure, sentence, evidence=error.evidence)
