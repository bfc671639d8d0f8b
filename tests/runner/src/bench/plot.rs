// SPDX-License-Identifier: GPL-2.0

//! Results as a plot.

use std::path::Path;

use anyhow::{Result, anyhow};
use figures::{DRIVER, Row, WITHOUT_COPIES};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Sizes in pixels.
const WIDTH: u32 = 980;
const LINE: u32 = 18;
const LABELS: u32 = 270;
const HEAD: u32 = 110;
const FONT: (&str, u32) = ("sans-serif", 12);
/// Ratios beyond this are drawn at the margin.
const LIMIT: f64 = 2.0;

/// The panels, from top to bottom.
struct Panel<'a> {
    title: &'static str,
    rows: Vec<&'a Row>,
}

/// Draws the ratios of all cases, one below the other.
pub fn draw(path: &Path, rows: &[Row]) -> Result<()> {
    let panel = |title, wanted: &dyn Fn(&Row) -> bool| Panel {
        title,
        rows: rows
            .iter()
            .filter(|row| row.ratio.is_some() && wanted(row))
            .collect(),
    };
    let panels = [
        panel("Instructions of the driver", &|row| row.unit == DRIVER),
        panel(
            "Instructions of the driver and what it calls, without copies",
            &|row| row.unit == WITHOUT_COPIES,
        ),
        panel("Time", &|row| row.mode == "time"),
    ];
    let panels: Vec<&Panel<'_>> = panels
        .iter()
        .filter(|panel| !panel.rows.is_empty())
        .collect();
    let heights: Vec<u32> = panels
        .iter()
        .map(|panel| HEAD + LINE * panel.rows.len() as u32)
        .collect();
    let size = (WIDTH, heights.iter().sum::<u32>().max(LINE));
    let area = SVGBackend::new(path, size).into_drawing_area();
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let mut top = 0;
        for (panel, height) in panels.iter().zip(&heights) {
            let part = area.clone().shrink((0, top), (WIDTH, *height));
            draw_panel(&part, panel)?;
            top += height;
        }
        area.present()?;
        Ok(())
    };
    drawn().map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let count = panel.rows.len() as f64;
    let title = format!("{}: pmem_rs / nd_pmem, lower is better", panel.title);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(0.0..LIMIT, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(11)
        .x_label_formatter(&|ratio| format!("{ratio:.1}"))
        .label_style(FONT)
        .draw()?;
    let equal = [(1.0, 0.0), (1.0, count)];
    chart.draw_series([PathElement::new(equal, BLACK.stroke_width(1))])?;
    for (index, row) in panel.rows.iter().enumerate() {
        // The first is at the top.
        let y = count - index as f64 - 0.5;
        let (Some(ratio), Some(low), Some(high)) = (row.ratio, row.low, row.high) else {
            continue;
        };
        let [ratio, low, high] = [ratio, low, high].map(|x| x.min(LIMIT));
        let color = if low > 1.0 {
            RGBColor(200, 60, 40)
        } else if high < 1.0 {
            RGBColor(30, 120, 60)
        } else {
            RGBColor(90, 90, 90)
        };
        let spread = [(low, y), (high, y)];
        chart.draw_series([PathElement::new(spread, color.stroke_width(2))])?;
        chart.draw_series([Circle::new((ratio, y), 4, color.filled())])?;
        let (_, height) = chart.backend_coord(&(0.0, y));
        let (left, top) = area.get_base_pixel();
        let style = FONT.into_font().color(&BLACK);
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        let place = (LABELS as i32 - left, height - top);
        area.draw(&Text::new(row.case.replace('_', " "), place, style))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_named_in_the_picture() {
        let row = |case: &str, ratio: f64| Row {
            case: case.to_owned(),
            mode: "time".to_owned(),
            unit: "ns".to_owned(),
            nd_pmem: Some(1.0),
            pmem_rs: Some(ratio),
            ratio: Some(ratio),
            low: Some(ratio - 0.1),
            high: Some(ratio + 0.1),
        };
        let path = std::env::temp_dir().join(format!("bench-{}.svg", std::process::id()));
        draw(&path, &[row("read_4k", 0.8), row("far_away", 30.0)]).expect("it can be drawn");
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it can be removed");
        for name in ["read 4k", "far away"] {
            assert!(text.contains(name), "{name} is missing");
        }
    }
}
