"""The timetable of the CronJobs, looked at and changed while everything runs: `autolabs schedule`."""
