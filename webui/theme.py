"""How the board looks: system fonts (also for Chinese), calm colours whose contrast holds in both modes."""

from __future__ import annotations

import gradio as gr

FONTS = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", '
    '"Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif'
)
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", "Noto Sans Mono CJK SC", monospace'


def theme() -> gr.themes.Base:
    """Blue for what can be pressed, grey for the rest; 4.5:1 for all text."""
    return gr.themes.Base(
        primary_hue="blue",
        secondary_hue="slate",
        neutral_hue="slate",
        font=[FONTS],
        font_mono=[MONO],
        radius_size="md",
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f141b",
        body_text_color="#17202b",
        body_text_color_dark="#e7ecf3",
        body_text_color_subdued="#4a5768",
        body_text_color_subdued_dark="#a9b6c6",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171e28",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171e28",
        block_border_color="#d5dbe3",
        block_border_color_dark="#2c3644",
        block_label_text_color="#39475a",
        block_label_text_color_dark="#b9c4d3",
        block_title_text_color="#17202b",
        block_title_text_color_dark="#e7ecf3",
        block_info_text_color="#4a5768",
        block_info_text_color_dark="#a9b6c6",
        block_title_text_weight="600",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10161e",
        input_border_width="1px",
        input_border_color="#8794a5",
        input_border_color_dark="#5d6b7e",
        checkbox_border_color="#8794a5",
        checkbox_border_color_dark="#7d8b9e",
        input_placeholder_color="#5d6b7e",
        input_placeholder_color_dark="#93a1b3",
        button_primary_background_fill="#1d5fc4",
        button_primary_background_fill_hover="#174d9f",
        button_primary_background_fill_dark="#2568cf",
        button_primary_background_fill_hover_dark="#1d5fc4",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#e9edf2",
        button_secondary_background_fill_dark="#263140",
        button_secondary_text_color="#17202b",
        button_secondary_text_color_dark="#e7ecf3",
        button_cancel_background_fill="#fbe9e7",
        button_cancel_background_fill_dark="#4a1f1c",
        button_cancel_text_color="#8c1d13",
        button_cancel_text_color_dark="#ffc9c2",
        link_text_color="#1a57b4",
        link_text_color_dark="#8ab8ff",
    )
