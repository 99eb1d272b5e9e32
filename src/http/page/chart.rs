//! Lines over the last ten minutes, as inline SVG. Pure.
//!
//! The picture is stretched to the width of the page. So its texts lie outside of it, in HTML.

use maud::{Markup, html};

/// The size of the picture in its own units. The height is the one in the style sheet, so that lines are not
/// distorted.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;

/// A line.
pub(super) struct Line<'a> {
    /// Its name, which is also the class of its colour.
    pub(super) class: &'static str,
    pub(super) name: &'static str,
    /// The values, the last one is now. `None` leaves a gap.
    pub(super) values: &'a [Option<f64>],
}

/// The scale of the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From zero to a round number.
    Linear { top: f64 },
    /// By powers of ten.
    Logarithmic { bottom: f64, top: f64 },
}

impl Scale {
    /// The scale for values from zero. The top is 1, 2 or 5 times a power of `base`.
    pub(super) fn linear(values: impl Iterator<Item = f64>, base: f64) -> Self {
        let most = values.fold(1.0, f64::max);
        let unit = base.powf((most.ln() / base.ln() + 1e-9).floor());
        let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
        let top = steps.into_iter().map(|step| step * unit).find(|top| *top >= most);
        Self::Linear { top: top.unwrap_or(base * unit) }
    }

    /// The scale for values above zero: at least two powers of ten.
    pub(super) fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 1.0_f64);
        for value in values {
            (least, most) = (least.min(value), most.max(value));
        }
        let bottom = if least.is_finite() { least.max(1.0).log10().floor() } else { 1.0 };
        let top = most.log10().ceil().max(bottom + 2.0);
        Self::Logarithmic { bottom: 10.0_f64.powf(bottom), top: 10.0_f64.powf(top) }
    }

    /// The place of a value, from 0 at the bottom to 1 at the top.
    fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear { top } => value / top,
            Self::Logarithmic { bottom, top } => {
                (value.max(bottom) / bottom).log10() / (top / bottom).log10()
            }
        };
        place.clamp(0.0, 1.0)
    }

    /// The values at the top, the middle and the bottom.
    pub(super) fn ticks(self) -> [f64; 3] {
        match self {
            Self::Linear { top } => [top, top / 2.0, 0.0],
            Self::Logarithmic { bottom, top } => [top, (top * bottom).sqrt(), bottom],
        }
    }
}

/// A picture of lines with their axis. `count` is the number of values of a whole width.
pub(super) fn chart(
    lines: &[Line<'_>],
    scale: Scale,
    count: usize,
    show: impl Fn(f64) -> String,
) -> Markup {
    let described: Vec<_> = lines.iter().map(|line| line.name).collect();
    let label = format!("{} over the last ten minutes", described.join(" and "));
    html! {
        div.chart {
            div.axis aria-hidden="true" { @for tick in scale.ticks() { span { (show(tick)) } } }
            svg role="img" aria-label=(label) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
                @for place in [0.0, 0.5, 1.0] {
                    line.grid x1="0" x2=(WIDTH) y1=(HEIGHT * place) y2=(HEIGHT * place) {}
                }
                @for line in lines {
                    @for run in runs(line.values, scale, count) {
                        @if let Some(area) = area(&run) { path.area.(line.class) d=(area) {} }
                        path.line.(line.class) d=(outline(&run)) {}
                    }
                }
            }
            div.time aria-hidden="true" { span { "10 min ago" } span { "5 min" } span { "now" } }
        }
    }
}

/// The points of each run without a gap.
fn runs(values: &[Option<f64>], scale: Scale, count: usize) -> Vec<Vec<(f64, f64)>> {
    let values = &values[values.len().saturating_sub(count)..];
    let step = WIDTH / (count.max(2) - 1) as f64;
    let start = WIDTH - step * values.len().saturating_sub(1) as f64;
    let mut runs = vec![Vec::new()];
    for (at, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let point = (start + step * at as f64, HEIGHT * (1.0 - scale.place(*value)));
                runs.last_mut().expect("one is there from the start").push(point);
            }
            None => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn outline(run: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (at, (x, y)) in run.iter().enumerate() {
        let command = if at == 0 { 'M' } else { 'L' };
        path += &format!("{command}{x:.1} {y:.1}");
    }
    // A single point has the length of a dot.
    if run.len() == 1 {
        path += "h0.01";
    }
    path
}

/// The area below a run.
fn area(run: &[(f64, f64)]) -> Option<String> {
    let ((first, _), (last, _)) = (run.first()?, run.last()?);
    (run.len() > 1).then(|| format!("{}L{last:.1} {HEIGHT}L{first:.1} {HEIGHT}Z", outline(run)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        let linear = |most: f64, base| Scale::linear([most].into_iter(), base);
        assert_eq!(linear(0.0, 1024.0), Scale::Linear { top: 1.0 });
        assert_eq!(linear(3.0, 10.0), Scale::Linear { top: 5.0 });
        assert_eq!(linear(1024.0 * 700.0, 1024.0), Scale::Linear { top: 1024.0 * 1000.0 });
        let scale = Scale::logarithmic([40.0, 90_000.0].into_iter());
        assert_eq!(scale, Scale::Logarithmic { bottom: 10.0, top: 100_000.0 });
        assert_eq!(scale.ticks(), [100_000.0, 1_000.0, 10.0]);
        assert!(matches!(Scale::logarithmic(std::iter::empty()), Scale::Logarithmic { .. }));
    }

    proptest! {
        #[test]
        fn every_point_lies_in_the_picture(
            values in prop::collection::vec(prop::option::of(0.0f64..1e15), 0..200),
            is_linear in any::<bool>(),
        ) {
            let known = || values.iter().copied().flatten();
            let scale = if is_linear { Scale::linear(known(), 1024.0) } else { Scale::logarithmic(known()) };
            for (x, y) in runs(&values, scale, 120).into_iter().flatten() {
                prop_assert!((-0.01..=WIDTH + 0.01).contains(&x) && (0.0..=HEIGHT).contains(&y), "{x} {y}");
            }
            let line = Line { class: "a", name: "a", values: &values };
            let text = chart(&[line], scale, 120, |value| value.to_string()).into_string();
            prop_assert!(!text.contains("NaN"));
        }
    }
}
