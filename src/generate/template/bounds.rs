//! Bounds put into a template before it is compiled: minijinja counts steps and what is made, but not what is looked
//! into (texts and lists that are compared, searched, sorted, used as keys), nor how deep values lie in one another, and
//! sums, slices and mapped lists are computed again whenever they are read.
//!
//! The template's tree is built a second time with filters in it. So these hold: every value is plain, its lists and
//! dicts are copied where they are made and at most so deep ([`PLAIN`], [`STORED`]); and whatever looks into a value
//! is paid for by all that the value holds ([`PAID`], [`APPLY`], [`TEST`]).

use minijinja::Value;
use minijinja::machinery::ast::{
    AutoEscape, BinOp, BinOpKind, Break, Call, CallArg, CallBlock, Compare, CompareOp, Const, Continue, Do, EmitExpr,
    EmitRaw, Expr, Filter, FilterBlock, ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Map, Set, SetBlock,
    Slice, Spanned, Stmt, Template, Test, Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::cost::STEP_BYTES;
use super::values::{APPLY, AS_IT_IS, PAID, PLAIN, STORED, TEST};
use crate::error::{Code, Error, Result};

/// Words and signs in one tag: chains of operators nest what they make. The longest tags of known templates have some
/// hundred.
const TAG_TOKENS: usize = 1024;

/// Bytes of a word in a tag, which every step that names it looks at.
const WORD_BYTES: usize = 256;

/// Checks the length of tags and of the words in them.
///
/// # Errors
///
/// [`Code::ChatTemplate`] for a tag of more than [`TAG_TOKENS`], or a word of more than [`WORD_BYTES`]. Behind what
/// is no template nothing is looked at: compiling it says what is wrong.
pub(super) fn check_tags(source: &str, syntax: &SyntaxConfig) -> Result<()> {
    let mut n_tokens = 0;
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { break };
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => n_tokens = 0,
            _ => n_tokens += 1,
        }
        let expected = match token {
            Token::Ident(word) if word.len() > WORD_BYTES => format!("words of at most {WORD_BYTES} bytes in a tag"),
            _ if n_tokens > TAG_TOKENS => format!("at most {TAG_TOKENS} words and signs in a tag"),
            _ => continue,
        };
        let message = format!("expected {expected}, found more in line {}", span.start_line);
        return Err(Error::new(Code::ChatTemplate, message));
    }
    Ok(())
}

/// `statement` with the filters.
pub(super) fn bounded<'a>(statement: &Stmt<'a>) -> Stmt<'a> {
    match statement {
        Stmt::Template(s) => Stmt::Template(at(s, Template { children: all(&s.children) })),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(at(s, EmitExpr { expr: value(&s.expr) })),
        Stmt::EmitRaw(s) => Stmt::EmitRaw(at(s, EmitRaw { raw: s.raw })),
        Stmt::ForLoop(s) => Stmt::ForLoop(at(
            s,
            ForLoop {
                target: target(&s.target),
                iter: paid_if_text(&s.iter),
                filter_expr: s.filter_expr.as_ref().map(value),
                recursive: s.recursive,
                body: all(&s.body),
                else_body: all(&s.else_body),
            },
        )),
        Stmt::IfCond(s) => Stmt::IfCond(at(
            s,
            IfCond { expr: value(&s.expr), true_body: all(&s.true_body), false_body: all(&s.false_body) },
        )),
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(to, from)| (target(to), value(from))).collect();
            Stmt::WithBlock(at(s, WithBlock { assignments, body: all(&s.body) }))
        }
        Stmt::Set(s) => {
            let expr = if sets_attribute(&s.target) { filtered(STORED, value(&s.expr)) } else { value(&s.expr) };
            Stmt::Set(at(s, Set { target: target(&s.target), expr }))
        }
        Stmt::SetBlock(s) => Stmt::SetBlock(at(
            s,
            SetBlock { target: target(&s.target), filter: s.filter.as_ref().map(value), body: all(&s.body) },
        )),
        Stmt::AutoEscape(s) => Stmt::AutoEscape(at(s, AutoEscape { enabled: value(&s.enabled), body: all(&s.body) })),
        Stmt::FilterBlock(s) => Stmt::FilterBlock(at(
            s,
            FilterBlock { filter: value(&s.filter), filter_span: s.filter_span, body: all(&s.body) },
        )),
        Stmt::Macro(s) => Stmt::Macro(at(s, macro_of(s))),
        Stmt::CallBlock(s) => Stmt::CallBlock(at(
            s,
            CallBlock {
                call: at(&s.call, call_of(&s.call)),
                call_expr_span: s.call_expr_span,
                macro_decl: at(&s.macro_decl, macro_of(&s.macro_decl)),
            },
        )),
        Stmt::Continue(s) => Stmt::Continue(at(s, Continue)),
        Stmt::Break(s) => Stmt::Break(at(s, Break)),
        Stmt::Do(s) => Stmt::Do(at(s, Do { call: at(&s.call, call_of(&s.call)) })),
    }
}

fn at<T, U>(old: &Spanned<T>, new: U) -> Spanned<U> {
    Spanned::new(new, old.span())
}

fn all<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(bounded).collect()
}

fn macro_of<'a>(m: &Macro<'a>) -> Macro<'a> {
    Macro {
        name: m.name,
        args: m.args.iter().map(target).collect(),
        defaults: m.defaults.iter().map(value).collect(),
        body: all(&m.body),
    }
}

fn call_of<'a>(c: &Call<'a>) -> Call<'a> {
    // The only method that looks into its arguments without passing `values::python_method`.
    let looks = matches!(&c.expr, Expr::GetAttr(callee) if callee.name == "changed");
    Call { expr: value(&c.expr), args: args(&c.args, if looks { looked_into } else { value }) }
}

fn args<'a>(args: &[CallArg<'a>], of: fn(&Expr<'a>) -> Expr<'a>) -> Vec<CallArg<'a>> {
    let arg = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(e) => CallArg::Pos(of(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, of(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(of(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(looked_into(e)),
    };
    args.iter().map(arg).collect()
}

/// What is assigned to: names, attributes, lists of both.
fn target<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::List(e) => Expr::List(at(e, List { items: e.items.iter().map(target).collect() })),
        e => value(e),
    }
}

fn sets_attribute(target: &Expr) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(list) => list.items.iter().any(sets_attribute),
        _ => false,
    }
}

/// `e` with its parts bounded, and plain where it makes a list, a dict or a text.
fn value<'a>(e: &Expr<'a>) -> Expr<'a> {
    let some = |e: &Option<Expr<'a>>| e.as_ref().map(value);
    match e {
        Expr::Var(e) => Expr::Var(at(e, Var { id: e.id })),
        Expr::Const(e) => Expr::Const(at(e, Const { value: e.value.clone() })),
        Expr::Slice(e) => plain(Expr::Slice(at(
            e,
            Slice { expr: looked_into(&e.expr), start: some(&e.start), stop: some(&e.stop), step: some(&e.step) },
        ))),
        Expr::UnaryOp(e) => {
            let op = if matches!(e.op, UnaryOpKind::Not) { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(at(e, UnaryOp { op, expr: value(&e.expr) }))
        }
        Expr::BinOp(e) => match e.op {
            BinOpKind::ScAnd | BinOpKind::ScOr => {
                Expr::BinOp(at(e, BinOp { op: e.op, left: value(&e.left), right: value(&e.right) }))
            }
            op => {
                let new = Expr::BinOp(at(e, BinOp { op, left: looked_into(&e.left), right: looked_into(&e.right) }));
                match op {
                    BinOpKind::Add | BinOpKind::Mul => plain(new),
                    _ => new,
                }
            }
        },
        Expr::Compare(e) => {
            let ops = e.ops.iter().map(|o| CompareOp { op: o.op, expr: looked_into(&o.expr) }).collect();
            Expr::Compare(at(e, Compare { expr: looked_into(&e.expr), ops }))
        }
        Expr::IfExpr(e) => Expr::IfExpr(at(
            e,
            IfExpr { test_expr: value(&e.test_expr), true_expr: value(&e.true_expr), false_expr: some(&e.false_expr) },
        )),
        Expr::Filter(e) => Expr::Filter(at(
            e,
            Filter { name: APPLY, expr: some(&e.expr), args: named(e.name, e, args(&e.args, value)) },
        )),
        Expr::Test(e) => {
            Expr::Test(at(e, Test { name: TEST, expr: value(&e.expr), args: named(e.name, e, args(&e.args, value)) }))
        }
        Expr::GetAttr(e) => Expr::GetAttr(at(e, GetAttr { expr: value(&e.expr), name: e.name })),
        Expr::GetItem(e) => Expr::GetItem(at(
            e,
            GetItem { expr: paid_if_text(&e.expr), subscript_expr: looked_into(&e.subscript_expr) },
        )),
        Expr::Call(e) => {
            let call = Expr::Call(at(e, call_of(e)));
            // A loop that calls itself makes text, and is told by this form.
            if matches!(&e.expr, Expr::Var(callee) if callee.id == "loop") { call } else { plain(call) }
        }
        Expr::List(e) => plain(Expr::List(at(e, List { items: e.items.iter().map(value).collect() }))),
        Expr::Tuple(e) => plain(Expr::Tuple(at(e, Tuple { items: e.items.iter().map(value).collect() }))),
        Expr::Map(e) => plain(Expr::Map(at(
            e,
            Map { keys: e.keys.iter().map(looked_into).collect(), values: e.values.iter().map(value).collect() },
        ))),
    }
}

/// The arguments of [`APPLY`] and [`TEST`] for a filter or test of this name.
fn named<'a, T>(name: &str, place: &Spanned<T>, given: Vec<CallArg<'a>>) -> Vec<CallArg<'a>> {
    let mut all = vec![CallArg::Pos(Expr::Const(at(place, Const { value: Value::from(name) })))];
    all.extend(given);
    all
}

fn filtered<'a>(name: &'static str, e: Expr<'a>) -> Expr<'a> {
    let span = e.span();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(e), args: Vec::new() }, span))
}

fn plain<'a>(e: Expr<'a>) -> Expr<'a> {
    filtered(PLAIN, e)
}

/// Whether it may give more than was paid for where it was made: lists hold the same text many times at the price of one.
fn may_be_large(e: &Expr) -> bool {
    match e {
        Expr::UnaryOp(_) | Expr::Compare(_) | Expr::Test(_) => false,
        Expr::BinOp(e) => matches!(e.op, BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Add | BinOpKind::Mul),
        Expr::Const(e) => e.value.as_str().is_some_and(|text| text.len() > STEP_BYTES),
        _ => true,
    }
}

/// A value that is read as a whole.
fn looked_into<'a>(e: &Expr<'a>) -> Expr<'a> {
    if may_be_large(e) { filtered(PAID, value(e)) } else { value(e) }
}

/// A value whose characters are counted if it is text; what else it may be answers at once.
fn paid_if_text<'a>(e: &Expr<'a>) -> Expr<'a> {
    if may_be_large(e) { filtered(AS_IT_IS, value(e)) } else { value(e) }
}
