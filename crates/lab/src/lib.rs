//! What experiments are made of: requests, statistics, and reports as tables, pages and pictures.
//!
//! - [`ab`] compares scheduling policies on a running engine, for `vecmill ab`.
//! - [`traffic`] is the requests that it sends, made ones of realistic [`lengths`] or those of a trace.
//! - [`histogram`] and [`results`] count and keep what was measured, [`units`] and [`svg`] show it.
//!
//! The choice behind it: the product has one experiment, this one. What else measures vecmill is
//! `vecmill-bench`, which uses the same parts.

pub mod ab;
pub mod histogram;
pub mod lengths;
pub mod results;
pub mod svg;
pub mod traffic;
pub mod units;
