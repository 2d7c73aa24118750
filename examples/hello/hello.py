import json
import logging


def handler(event, context):
    records = json.loads(event)
    logging.info("%d record(s): %s", len(records), [record.get("data") for record in records])
    return len(records)
