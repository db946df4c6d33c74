"""Passwords of a local cluster that tests can tell apart."""

from __future__ import annotations

from deploy.local.credentials import Credentials

MADE = Credentials(
    amqp_admin="adminpw",
    amqp_jobs="jobspw",
    amqp_keda="kedapw",
    postgresql="pgpw",
    minio="s3pw",
    redis="redispw",
)
