//! PNG files of 8 bits a channel, with text beside the pixels.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use png::{BitDepth, ColorType, DecodingError, Encoder, EncodingError, Transformations};

use super::Image;
use crate::artifacts::atomic_write;
use crate::{Error, Result};

const KIND: &str = "PNG image";

impl Image {
    /// Writes a PNG file atomically. Values are clamped to 0..1 and rounded to the nearest of 256 levels
    /// (`(255 v + 0.5)` cut off, so 0.5 becomes 128). `texts` are stored beside the pixels: as `tEXt` where Latin-1
    /// suffices, else as `iTXt`. The same image and texts give the same bytes.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a pixel is NaN or infinite, [`Error::Malformed`] if a keyword is not 1 to 79 Latin-1
    /// characters, [`Error::Io`] if the file cannot be written.
    pub fn write_png(&self, path: &Path, texts: &[(&str, &str)]) -> Result<()> {
        if self.pixels.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: format!("the image for `{}`", path.display()) });
        }
        let bytes: Vec<u8> = self.pixels.iter().map(|&v| level(v)).collect();
        let (Ok(width), Ok(height)) = (u32::try_from(self.width), u32::try_from(self.height)) else {
            return Err(Error::malformed(KIND, path, "a side has over 2³² pixels"));
        };
        atomic_write(path, |file| {
            let failed = |e| match e {
                EncodingError::IoError(e) => Error::io("write", path)(e),
                other => Error::malformed(KIND, path, other),
            };
            let mut encoder = Encoder::new(BufWriter::new(file), width, height);
            encoder.set_color(ColorType::Rgb);
            encoder.set_depth(BitDepth::Eight);
            for (key, text) in texts {
                let latin = text.chars().all(|c| u32::from(c) < 256 && c != '\0');
                let (key, text) = ((*key).to_owned(), (*text).to_owned());
                if latin { encoder.add_text_chunk(key, text) } else { encoder.add_itxt_chunk(key, text) }
                    .map_err(failed)?;
            }
            let mut writer = encoder.write_header().map_err(failed)?;
            writer.write_image_data(&bytes).map_err(failed)?;
            writer.finish().map_err(failed)
        })
    }

    /// Reads a PNG file as RGB, with its texts. Grey becomes three equal channels; transparency is ignored; 16
    /// bits are cut to 8.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Malformed`] if it is no PNG image or was cut off.
    pub fn read_png(path: &Path) -> Result<(Self, BTreeMap<String, String>)> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let failed = |e: DecodingError| match e {
            DecodingError::IoError(e) if e.raw_os_error().is_some() => Error::io("read", path)(e),
            other => Error::malformed(KIND, path, other),
        };
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(failed)?;
        let size = reader.output_buffer_size().ok_or_else(|| Error::malformed(KIND, path, "too large"))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|e| Error::malformed(KIND, path, e))?;
        bytes.resize(size, 0);
        let frame = reader.next_frame(&mut bytes).map_err(failed)?;
        reader.finish().map_err(failed)?;
        bytes.truncate(frame.buffer_size());
        let channels = frame.color_type.samples();
        let pixels = bytes
            .chunks_exact(channels)
            .flat_map(|p| if channels < 3 { [p[0]; 3] } else { [p[0], p[1], p[2]] })
            .map(|v| f32::from(v) / 255.0)
            .collect();
        let image = Self::new(frame.height as usize, frame.width as usize, pixels)?;
        Ok((image, texts(reader.info())))
    }
}

/// The grey level, 0 to 255, that a PNG file holds of a value.
pub(crate) fn level(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

fn texts(info: &png::Info<'_>) -> BTreeMap<String, String> {
    let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    let packed =
        info.compressed_latin1_text.iter().filter_map(|t| Some((t.keyword.clone(), t.get_text().ok()?)));
    let unicode = info.utf8_text.iter().filter_map(|t| Some((t.keyword.clone(), t.get_text().ok()?)));
    latin.chain(packed).chain(unicode).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn gradient() -> Image {
        let pixels = (0..8 * 4 * 3).map(|v| v as f32 / 95.0).collect();
        Image::new(8, 4, pixels).unwrap()
    }

    #[test]
    fn pixels_and_texts_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images/0000.png");
        let texts = [("prompt", "a café"), ("seed", "7"), ("note", "四 bits — “W4A8”")];
        gradient().write_png(&path, &texts).unwrap();
        let (image, found) = Image::read_png(&path).unwrap();
        assert_eq!((image.height(), image.width()), (8, 4));
        for (a, b) in image.pixels().iter().zip(gradient().pixels()) {
            assert!((a - b).abs() <= 0.5 / 255.0 + 1e-6, "{a} {b}");
        }
        assert_eq!(found, texts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        let again = dir.path().join("again.png");
        gradient().write_png(&again, &texts).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    }

    #[test]
    fn values_are_rounded_and_clamped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let levels = [-1.0, 0.0, 0.49 / 255.0, 0.51 / 255.0, 0.5, 254.4 / 255.0, 254.6 / 255.0, 1.0, 7.0];
        Image::new(1, 3, levels.to_vec()).unwrap().write_png(&path, &[]).unwrap();
        let (image, _) = Image::read_png(&path).unwrap();
        let found: Vec<u32> = image.pixels().iter().map(|v| (v * 255.0).round() as u32).collect();
        assert_eq!(found, [0, 0, 0, 1, 128, 254, 255, 255, 255]);
    }

    #[test]
    fn what_cannot_be_written_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let broken = Image::new(1, 1, vec![0.0, f32::NAN, 0.0]).unwrap();
        assert!(matches!(broken.write_png(&path, &[]), Err(Error::NotFinite { .. })));
        let long = "k".repeat(80);
        assert!(matches!(gradient().write_png(&path, &[(&long, "x")]), Err(Error::Malformed { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        gradient().write_png(&path, &[]).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() - 12 {
            fs::write(&path, &whole[..length]).unwrap();
            let result = Image::read_png(&path);
            assert!(matches!(result, Err(Error::Malformed { .. })), "{length}: {result:?}");
        }
    }

    #[test]
    fn grey_and_transparent_files_are_read_as_rgb() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        for (colour, data, expected) in [
            (ColorType::Grayscale, &[51u8, 255][..], [0.2, 0.2, 0.2, 1.0, 1.0, 1.0]),
            (ColorType::Rgba, &[51, 102, 153, 0, 255, 0, 0, 255], [0.2, 0.4, 0.6, 1.0, 0.0, 0.0]),
        ] {
            let mut encoder = Encoder::new(File::create(&path).unwrap(), 2, 1);
            encoder.set_color(colour);
            encoder.set_depth(BitDepth::Eight);
            encoder.write_header().unwrap().write_image_data(data).unwrap();
            assert_eq!(Image::read_png(&path).unwrap().0.pixels(), expected);
        }
    }
}
