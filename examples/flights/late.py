<<<<<<< HEAD
"""Tells of flights that arrived late; refuses the few that are late beyond belief, which shows retries and dead letters."""

import json
import logging

UNBELIEVABLE_MINUTES = 300


def initialize(context):
    logging.info("ready to look at late flights")


def handler(event, context):
    flights = json.loads(event)
    failed = []
    for flight in flights:
        data = flight["data"]
        if data["delay"] > UNBELIEVABLE_MINUTES:
            failed.append({"itemIdentifier": flight["id"]})
    worst = max(flights, key=lambda flight: flight["data"]["delay"])["data"]
    logging.info(
        "%d late flight(s), worst %s-%s by %d min", len(flights), worst["origin"], worst["destination"], worst["delay"]
    )
    return {"batchItemFailures": failed}
=======
import json
import logging


def handler(event, context):
    flights = [record["data"] for record in json.loads(event)]
    worst = max(flights, key=lambda flight: flight["delay"])
    logging.info(
        "%d late flights, the worst %s-%s with %d minutes",
        len(flights), worst["origin"], worst["destination"], worst["delay"],
    )
    return len(flights)
>>>>>>> http
