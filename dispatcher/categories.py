"""Why a lab or a task failed, as `error_category` says it, and who has to act."""

from __future__ import annotations

import enum


class Category(str, enum.Enum):
    """Why a task failed."""

    #: The image of the lab cannot be loaded, or does not run.
    PERMANENT_IMAGE_ERROR = "PERMANENT_IMAGE_ERROR"
    #: The platform lacks a right.
    PERMANENT_PERMISSION_ERROR = "PERMANENT_PERMISSION_ERROR"
    #: The request or a template is wrong.
    PERMANENT_INVALID_REQUEST = "PERMANENT_INVALID_REQUEST"
    #: The cluster has no room now.
    TEMPORARY_RESOURCE_ERROR = "TEMPORARY_RESOURCE_ERROR"
    #: A service did not answer.
    TEMPORARY_NETWORK_ERROR = "TEMPORARY_NETWORK_ERROR"


class Audience(str, enum.Enum):
    """Who is told, because nobody else can act."""

    #: Whose lab it is.
    STUDENT = "student"
    #: Of the lab's course.
    TEACHER = "teacher"
    #: Of the platform.
    ADMIN = "admin"
    #: Nobody has to act.
    NOBODY = "nobody"
