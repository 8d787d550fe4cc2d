//! Pictures: the few shapes of SVG that they are made of, and their looks.
//!
//! [`axis`] has scales and their marks.
//!
//! The choice behind it: one file of plain SVG, which a browser shows and a document embeds, written by
//! hand because it is little.

pub mod axis;

use std::fmt::Write;

/// The colour of lines and names.
pub const INK: &str = "#22272e";
/// The colour of explanations.
pub const MUTED: &str = "#57606a";
/// The colour of lines in the background.
pub const FAINT: &str = "#e7eaee";

/// Colours that people with any kind of colour vision tell apart, from Okabe and Ito's palette.
pub const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

/// The font of a panel's name.
pub const NAME: Font = Font { size: 14, bold: true, colour: INK };
/// The font of marks and explanations.
pub const SMALL: Font = Font { size: 12, bold: false, colour: MUTED };

/// Which end of a text is where it is put.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// A text's look.
#[derive(Debug, Clone, Copy)]
pub struct Font {
    /// Pixels.
    pub size: u32,
    /// Whether it is heavy.
    pub bold: bool,
    /// Its colour, as CSS has it.
    pub colour: &'static str,
}

/// A rectangle.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Its left edge.
    pub x: f64,
    /// Its upper edge.
    pub y: f64,
    /// From left to right.
    pub width: f64,
    /// From top to bottom.
    pub height: f64,
}

impl Area {
    /// Its right edge.
    pub fn right(self) -> f64 {
        self.x + self.width
    }

    /// Its lower edge.
    pub fn bottom(self) -> f64 {
        self.y + self.height
    }
}

/// A picture being drawn. Writing to a string can't fail, so results of `write!` are dropped.
#[derive(Debug, Default)]
pub struct Svg {
    body: String,
}

impl Svg {
    /// A straight line; `dashed` lines are thicker.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, dashed: bool) {
        let dash = if dashed { r#" stroke-width="1.5" stroke-dasharray="6 4""# } else { "" };
        let _ = writeln!(
            self.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{colour}"{dash}/>"#,
            Short(from.0),
            Short(from.1),
            Short(to.0),
            Short(to.1)
        );
    }

    /// A text, with one of its ends at a place.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, font: Font, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let Font { size, bold, colour } = font;
        let weight = if bold { r#" font-weight="bold""# } else { "" };
        let (x, y) = (Short(at.0), Short(at.1));
        let _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>{}</text>"#,
            escape(text)
        );
    }

    /// A filled shape; `look` is further attributes.
    pub fn path(&mut self, path: &Path, fill: &str, look: &str) {
        if !path.0.is_empty() {
            let _ = writeln!(self.body, r#"<path d="{}" fill="{fill}"{look}/>"#, path.0);
        }
    }

    /// The whole file, `title` for readers who hear it.
    pub fn finish(self, width: f64, height: f64, title: &str) -> String {
        let (title, width, height) = (escape(title), Short(width), Short(height));
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif">
<title>{title}</title>
<rect width="{width}" height="{height}" fill="#ffffff"/>
{}</svg>
"##,
            self.body
        )
    }
}

/// A shape's outline. Many shapes of one colour in one path take a third of the space.
#[derive(Debug, Default)]
pub struct Path(String);

impl Path {
    /// Begins an outline.
    pub fn start(&mut self, x: f64, y: f64) {
        let _ = write!(self.0, "M{} {}", Short(x), Short(y));
    }

    /// A line to the left or right.
    pub fn across(&mut self, x: f64) {
        let _ = write!(self.0, "H{}", Short(x));
    }

    /// A line up or down.
    pub fn up_or_down(&mut self, y: f64) {
        let _ = write!(self.0, "V{}", Short(y));
    }

    /// A line to a place.
    pub fn to(&mut self, x: f64, y: f64) {
        let _ = write!(self.0, "L{} {}", Short(x), Short(y));
    }

    /// A circle's outline.
    pub fn circle(&mut self, x: f64, y: f64, radius: f64) {
        self.start(x - radius, y);
        for width in [2.0 * radius, -2.0 * radius] {
            let _ = write!(self.0, "a{r} {r} 0 1 0 {} 0", Short(width), r = Short(radius));
        }
        self.close();
    }

    /// A line to where the outline began.
    pub fn close(&mut self) {
        self.0.push('z');
    }

    /// A rectangle's outline.
    pub fn rectangle(&mut self, area: Area) {
        self.start(area.x, area.y);
        self.across(area.right());
        self.up_or_down(area.bottom());
        self.across(area.x);
        self.close();
    }
}

/// A coordinate to a hundredth of a pixel, without zeros at its end.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.2}", self.0);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

/// Text that can't be taken for markup.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            _ if letter.is_control() => escaped.push(' '),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        let short = [0.0, -0.001, 10.0, 12.5, 7.654, 100.004].map(|x| Short(x).to_string());
        assert_eq!(short, ["0", "0", "10", "12.5", "7.65", "100"]);
    }

    #[test]
    fn names_are_not_taken_for_markup() {
        assert_eq!(escape("a<b & \"c\">\u{1}"), "a&lt;b &amp; \"c\"&gt; ");
    }
}
