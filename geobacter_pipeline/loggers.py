"""Loggers. `concise` shows what assets say, without Dagster's own bookkeeping, which the UI has."""

import logging
import sys

import dagster as dg


class _AssetsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        is_event = meta.get("dagster_event") if isinstance(meta, dict) else None
        # What did not run because something before it failed is told at the end, once, by the failure.
        return is_event is None and not _message(record).startswith("Dependencies for step")


def _message(record: logging.LogRecord) -> str:
    meta = getattr(record, "dagster_meta", {})
    found = meta.get("orig_message") if isinstance(meta, dict) else None
    return str(found or record.getMessage())


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        step = meta.get("step_key") or "" if isinstance(meta, dict) else ""
        return f"         {step}: {_message(record)}"


def _make_concise(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("geobacter", logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines())
    handler.addFilter(_AssetsOnly())
    logger.addHandler(handler)
    return logger


concise = dg.LoggerDefinition(_make_concise, description="One line per message of an asset, nothing else.")
