"""The configuration: every key with its meaning, loading and checks. All functions take ``cfg`` as an argument."""

from glem_graphgym.config.checks import (  # noqa: F401
    TEXT_GRAPHS,
    WORD_FEATURES,
    check_config,
    check_devices,
    check_metric,
    check_rules,
    check_seeds,
    feature_kinds,
    metric_of,
    reads_texts,
    trains_features,
    unread_keys,
    view_of,
)
from glem_graphgym.config.keys import (  # noqa: F401
    KEYS,
    NULLABLE,
    ConfigError,
    Key,
    all_keys,
    flat_settings,
    keys_table,
    settings_of,
    shown,
)
from glem_graphgym.config.loading import dump_config, load_config, typed_values  # noqa: F401
