"""Looking after studies: logs, detached drivers and jobs, deletion, figures of a trial."""
