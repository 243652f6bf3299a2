package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// eachElement walks a JSON object and hands each element of the array under
// key to take, as it was sent and one at a time; take must not keep it. What
// is not wanted is passed over: its brackets and strings are followed, and
// nothing else is checked.
//
// A mesh of 10,000 clusters answers with 12 MB, of which one element matters.
// encoding/json would make values of all of it; this makes none.
func eachElement(body io.Reader, key string, take func(element []byte) error) error {
	s := &scanner{r: body, buf: make([]byte, scanWindow), kept: -1}
	if c, err := s.peek(); err != nil {
		return err
	} else if c != '{' {
		return errNotAnObject
	}
	return s.list('}', func() error {
		raw, err := s.value()
		if err != nil {
			return err
		}
		var name string
		if err := json.Unmarshal(raw, &name); err != nil {
			return errNotAnObject
		}
		switch c, err := s.peek(); {
		case err != nil:
			return err
		case c != ':':
			return s.unexpected(c)
		}
		s.pos++
		c, err := s.peek()
		switch {
		case err != nil:
			return err
		case name != key:
			return s.skip()
		case c == 'n': // null stands for an empty array
			return s.skip()
		case c != '[':
			return fmt.Errorf("%q is not a JSON array", key)
		}
		var last []byte
		return s.list(']', func() error {
			if again, err := s.again(last); err != nil {
				return err
			} else if again {
				return take(last)
			}
			raw, err := s.value()
			if err != nil {
				return err
			}
			last = last[:0]
			if len(raw) <= maxRepeat && raw[0] == '{' {
				last = append(last, raw...)
			}
			return take(raw)
		})
	})
}

// scanWindow is how much of an answer is held, unless an element is longer.
const scanWindow = 64 << 10

// scanner reads JSON through a window.
type scanner struct {
	r        io.Reader
	buf      []byte
	pos, end int // of what was read and not yet passed
	kept     int // where what must stay in the window begins, -1 for nothing
	run      int // bytes read since something ended
}

// errSyntax is JSON that is none.
var errSyntax = errors.New("the answer is not JSON")

func (s *scanner) unexpected(c byte) error { return fmt.Errorf("%w: unexpected %q", errSyntax, c) }

// fill reads more.
func (s *scanner) fill() error {
	from := s.pos
	if s.kept >= 0 {
		from = s.kept
	}
	switch {
	case from == s.end || s.end == len(s.buf) && from > 0:
		s.end = copy(s.buf, s.buf[from:s.end])
		s.pos -= from
		s.kept = min(s.kept, 0)
	case s.end == len(s.buf) && len(s.buf) >= maxElement:
		return ErrTooLarge
	case s.end == len(s.buf):
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	n, err := s.r.Read(s.buf[s.end:])
	s.end += n
	if s.run += n; s.run > maxElement {
		return ErrTooLarge
	}
	if n > 0 {
		return nil // an error comes again
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// peek returns the next byte that is no space, and does not pass it.
func (s *scanner) peek() (byte, error) {
	for {
		for ; s.pos < s.end; s.pos++ {
			switch c := s.buf[s.pos]; c {
			case ' ', '\t', '\n', '\r':
			default:
				return c, nil
			}
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

// list walks what is between the bracket that comes next and its end, and
// calls item for each of its items.
func (s *scanner) list(end byte, item func() error) error {
	s.pos++
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c == end {
		s.pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		s.run = 0
		c, err := s.peek()
		if err != nil {
			return err
		}
		s.pos++
		switch c {
		case ',':
		case end:
			return nil
		default:
			return s.unexpected(c)
		}
	}
}

// value passes a value and returns it as it stands. It is valid until more is
// read.
func (s *scanner) value() ([]byte, error) {
	if _, err := s.peek(); err != nil {
		return nil, err
	}
	s.kept = s.pos
	err := s.skip()
	raw := s.buf[s.kept:s.pos]
	s.kept = -1
	return raw, err
}

// maxRepeat bounds what is remembered of an element.
const maxRepeat = 4 << 10

// again tells whether the next value is this object once more, and passes it
// if so: all contexts of a sidecar show the same certificates. An object ends
// where its bracket does, so what begins with it is it.
func (s *scanner) again(object []byte) (bool, error) {
	if len(object) == 0 {
		return false, nil
	}
	if _, err := s.peek(); err != nil {
		return false, err
	}
	for same := 0; ; {
		here := min(s.end-s.pos, len(object))
		if !bytes.Equal(s.buf[s.pos+same:s.pos+here], object[same:here]) {
			return false, nil
		}
		if same = here; same == len(object) {
			break
		}
		if err := s.fill(); err != nil {
			return false, err
		}
	}
	s.pos += len(object)
	return true, nil
}

// skip passes a value.
func (s *scanner) skip() error {
	c, err := s.peek()
	switch {
	case err != nil:
		return err
	case c == '"':
		return s.text()
	case c != '{' && c != '[':
		return s.literal()
	}
	for depth := 0; ; {
		// Local, and in tight loops: this is where the time goes.
		seen, i, progress := s.buf[:s.end], s.pos, false
		for {
			for i < len(seen) && !marks[seen[i]] {
				i++
			}
			if i == len(seen) {
				break
			}
			progress = true
			c := seen[i]
			i++
			switch c {
			case '"':
				begin := i
				for i < len(seen) && seen[i] != '"' && seen[i] != '\\' {
					i++
				}
				if i < len(seen) && seen[i] == '"' {
					i++
					continue
				}
				s.pos = begin - 1
				if err := s.text(); err != nil {
					return err
				}
				seen, i = s.buf[:s.end], s.pos
			case '{', '[':
				depth++
			default:
				if depth--; depth == 0 {
					s.pos, s.run = i, 0
					return nil
				}
			}
		}
		s.pos = s.end
		if progress {
			s.run = 0
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// marks are the bytes that say where a value ends.
var marks = [256]bool{'{': true, '}': true, '[': true, ']': true, '"': true}

// text passes a string.
func (s *scanner) text() error {
	s.pos++
	for escaped := false; ; {
		seen := s.buf[s.pos:s.end]
		end := bytes.IndexByte(seen, '"')
		if end >= 0 {
			seen = seen[:end]
		}
		escaped = escapes(seen, escaped)
		switch {
		case end < 0:
			s.pos = s.end
			if err := s.fill(); err != nil {
				return err
			}
		case escaped:
			s.pos += end + 1
			escaped = false
		default:
			s.pos += end + 1
			return nil
		}
	}
}

// escapes tells whether what follows text is escaped: whether an odd number of
// backslashes ends it. Before tells the same of its beginning.
func escapes(text []byte, before bool) bool {
	n := 0
	for n < len(text) && text[len(text)-1-n] == '\\' {
		n++
	}
	return (n%2 == 1) != (before && n == len(text))
}

// literal passes a number, true, false or null.
func (s *scanner) literal() error {
	for length := 0; ; {
		for ; s.pos < s.end; s.pos++ {
			c := s.buf[s.pos]
			if ('0' <= c && c <= '9') || ('a' <= c && c <= 'z') || c == '-' || c == '+' || c == '.' || c == 'E' {
				length++
				continue
			}
			if length == 0 {
				return s.unexpected(c)
			}
			return nil
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}
