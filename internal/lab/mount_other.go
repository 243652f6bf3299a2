//go:build !linux

package lab

import "path/filepath"

// mount is the directory itself where there is no /proc.
type mount struct{ dir string }

func newMount(dir string) (*mount, error) { return &mount{dir}, nil }
func (m *mount) path(name string) string  { return filepath.Join(m.dir, name) }
func (m *mount) remount(string) error     { return nil }
func (m *mount) close()                   {}

const canOrphan = false
