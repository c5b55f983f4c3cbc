"""Configuration: the schema and its loading."""

from goldfold.config.loading import (
    changed_keys,
    config_from_dict,
    dump_yaml,
    is_pipeline,
    json_schemas,
    load_config,
    load_pipeline,
    merged_values,
    read_yaml,
    spelt_out,
)
from goldfold.config.schema import Config, Pipeline

__all__ = [
    "Config",
    "Pipeline",
    "changed_keys",
    "config_from_dict",
    "dump_yaml",
    "is_pipeline",
    "json_schemas",
    "load_config",
    "load_pipeline",
    "merged_values",
    "read_yaml",
    "spelt_out",
]
