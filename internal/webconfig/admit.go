package webconfig

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"
)

// admit passes on to next the requests that the file admits.
func (f *File) admit(next http.Handler, limit *rate.Limiter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, err := f.read()
		f.complain(err)
		if err != nil {
			refuse(w, http.StatusInternalServerError)
			return
		}
		if limit != nil && !limit.Allow() {
			refuse(w, http.StatusTooManyRequests)
			return
		}
		for name, value := range d.HTTP.Headers {
			w.Header().Set(name, value)
		}
		if len(d.Users) > 0 {
			user, password, given := r.BasicAuth()
			if !given || !f.passwords.right(d.Users, user, password) {
				w.Header().Set("WWW-Authenticate", "Basic")
				refuse(w, http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, status int) { http.Error(w, http.StatusText(status), status) }

func checkPasswords(users map[string]string) error {
	for user, hash := range users {
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return fmt.Errorf("the password of %q is no bcrypt hash: %w", user, err)
		}
	}
	return nil
}

// maxVerdicts bounds how many passwords are remembered.
const maxVerdicts = 100

// passwords remembers which passwords were right and which wrong: bcrypt takes
// a twentieth of a second by design, and a scraper comes again and again. It
// remembers digests.
type passwords struct {
	mu       sync.Mutex
	verdicts map[[sha256.Size]byte]bool

	// one lets one comparison run at a time: passwords that are tried may cost
	// one core and no more.
	one sync.Mutex
}

func (p *passwords) right(users map[string]string, user, password string) bool {
	hash, known := users[user]
	if !known {
		// Compared all the same, so that the time does not tell who exists.
		names := make([]string, 0, len(users))
		for name := range users {
			names = append(names, name)
		}
		hash = users[slices.Min(names)]
	}
	key := digest(user, hash, password)
	if verdict, tried := p.tried(key); tried {
		return verdict
	}
	p.one.Lock()
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	p.one.Unlock()
	verdict := known && err == nil
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verdicts == nil || len(p.verdicts) >= maxVerdicts {
		p.verdicts = make(map[[sha256.Size]byte]bool)
	}
	p.verdicts[key] = verdict
	return verdict
}

func (p *passwords) tried(key [sha256.Size]byte) (verdict, tried bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	verdict, tried = p.verdicts[key]
	return verdict, tried
}

// digest is one for each list of texts.
func digest(texts ...string) [sha256.Size]byte {
	var all []byte
	for _, t := range texts {
		all = binary.AppendUvarint(all, uint64(len(t)))
		all = append(all, t...)
	}
	return sha256.Sum256(all)
}
