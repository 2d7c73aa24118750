"""Logs the records of each window that it receives."""

import json
import logging


def handler(event, context):
    events = json.loads(event)
    logging.info("%d record(s): %s", len(events), [e.get("data") for e in events])
